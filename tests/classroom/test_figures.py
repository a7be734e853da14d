import imageio.v3 as imageio

from diffusion_course.classroom.figures import loss_curve


def test_a_loss_curve_is_a_picture(tmp_path):
    for losses in ([0.5], [1.0 / (n + 1) for n in range(500)]):
        picture = imageio.imread(loss_curve(losses, tmp_path / "loss.png"))
        assert picture.shape[0] > 300 and picture.shape[1] > 500
        assert tuple(picture[2, 2, :3]) == (255, 255, 255)     # opaque and white, in a dark notebook too
        assert picture.min() < 128
