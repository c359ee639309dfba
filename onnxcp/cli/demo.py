"""`onnxcp demo`: the main job on a trained network that comes along."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcp.cli.again import settled_commands
from onnxcp.cli.options import PATH, verbosity_options
from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.settings import Settings

BATCH = 32
# conv3 makes up 6 % of the multiply-adds, and can keep more of its own at little cost.
MACS = {"*": 0.06, "conv3": 0.25}
FAMILIES = ("cp3",)

MODEL = "charnet.onnx"
TEST = "test.npz"
CALIBRATION = "calibration.npz"
INPUT_SHAPE = (BATCH, 1, 24, 24)


def settings() -> Settings:
    """Return what the demo asks of the main job."""
    from onnxcp.settings import Settings

    return Settings(macs=MACS, families=FAMILIES, input_shapes={"image": INPUT_SHAPE})


def options() -> str:
    """Return the same as options of `onnxcp optimize`."""
    shape = ",".join(map(str, INPUT_SHAPE))
    shares = ",".join(f"{name}={share}" for name, share in MACS.items()).removeprefix("*=")
    return f"--macs {shares} --families {','.join(FAMILIES)} --input-shapes image:{shape}"


@click.command(short_help="See it work on a network that comes along.")
@click.option(
    "--output",
    type=PATH,
    default="onnxcp-demo",
    show_default=True,
    metavar="DIR",
    help="Folder to write to; it is made.",
)
@verbosity_options
@click.pass_obj
def demo(terminal: Terminal, *, output: Path) -> None:
    """Optimize CharNet, a classifier of characters, and measure its accuracy before and after.

    Its layers are factorised, and refitted to 1000 pictures without labels; the accuracy is that
    on 5400 others, in typefaces that neither the network nor the refit has seen.

    The network is the one of Jaderberg et al. 2014, trained on pictures of printed characters.
    """
    from onnxcp.calibration.sources import CalibrationSource
    from onnxcp.cli import outcome
    from onnxcp.cli.outputs import check_outputs
    from onnxcp.errors import OutputError
    from onnxcp.optimizer import optimize
    from onnxcp.reporting.job import Job

    folder = demo_folder()
    model, test, calibration = folder / MODEL, folder / TEST, folder / CALIBRATION
    target, report = output / "charnet.optimized.onnx", output / "report.html"
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot make the folder '{output}': {error.strerror}.") from error
    inputs = {"the network of the demo": model, "its data": test, "more of its data": calibration}
    check_outputs({"the model": target, "the report": report}, inputs, force=True)
    terminal.say(f"CharNet on {BATCH} pictures at a time, with {options()}.\n")
    with terminal.progress() as progress:
        result = optimize(model, settings(), data=calibration, labelled=test, progress=progress)
    words = ["--calibration-data", str(calibration), "--eval-data", str(test)]
    command = shlex.join(["onnxcp", "optimize", str(model), *options().split(), *words])
    job = Job(
        settings(),
        str(model),
        command,
        str(target),
        again=settled_commands(command, result),
        data=str(CalibrationSource(calibration)),
        labelled=str(test),
    )
    outcome.show(terminal, result, job)
    outcome.keep(terminal, result, job, output=target, report=report, external=False)


def demo_folder() -> Path:
    """Return where CharNet lies: in the package if it was installed, else in the checkout.

    Raises
    ------
    ModelError
        If it is in neither.
    """
    import onnxcp
    from onnxcp.errors import ModelError

    package = Path(onnxcp.__file__).parent
    for folder in (package / "_demo", package.parent / "models" / "charnet"):
        if (folder / MODEL).is_file():
            return folder
    raise ModelError(f"The network of the demo, {MODEL}, did not come with this installation.")
