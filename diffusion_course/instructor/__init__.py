"""For those who teach: assignments, grading, and a fork of the course.  See lessons/INSTRUCTORS.md."""
