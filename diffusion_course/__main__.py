"""python -m diffusion_course"""
from .cli import main

main()
