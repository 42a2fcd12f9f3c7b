"""The command line of lm_eval with our model and our tasks: python -m quambench.harness run ...

lm_eval cannot be told of models from outside, and makes the model before it loads a task by name.
Here the model is registered first, and --include_path leads to our tasks unless another is given.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from quambench.core.errors import BadParameter, QuambenchError
from quambench.harness import check_installed, tasks_folder

USAGE = """\
python -m quambench.harness --path      where the tasks lie
python -m quambench.harness run ...     `lm_eval run ...`, which then knows the model quambench and these tasks
python -m quambench.harness ls tasks    likewise every other command of lm_eval

example: python -m quambench.harness run --model quambench --model_args model=mamba2-tiny --tasks prose_lambada
"""


def main(arguments: Sequence[str]) -> int:
    """Run lm_eval and return the exit code: lm_eval's own, 2 where quambench refuses."""
    if list(arguments) == ["--path"]:
        print(tasks_folder())
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    try:
        check_installed()
        _harness(list(arguments))
    except QuambenchError as error:
        print(f"quambench: {error}", file=sys.stderr)
        return 2
    return 0


def _harness(arguments: list[str]) -> None:
    _refuse_stored_requests(arguments)
    from lm_eval.__main__ import cli_evaluate

    from quambench.harness import adapter  # noqa: F401  (registers the model)

    if not any(a.split("=")[0] == "--include_path" for a in arguments):
        arguments += ["--include_path", str(tasks_folder())]
    sys.argv[1:] = arguments
    cli_evaluate()


def _refuse_stored_requests(arguments: Sequence[str]) -> None:
    """Refuse --cache_requests: lm_eval keys stored prompts by the task's name and number of examples.

    Other texts, and a later version's documents, would be asked the stored prompts. Deleting them is fine.
    raises BadParameter
    """
    for given, after in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = given.partition("=")
        if name == "--cache_requests" and (value or after) != "delete":
            raise BadParameter("leave --cache_requests out: its stored prompts do not say of which texts they are")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
