"""What a report says of how its numbers were made."""

from __future__ import annotations

import pytest
import torch

from quambench.errors import BadParameter
from quambench.models.checkpoint import checked_device
from quambench.provenance import machine_class, merged, provenance


def test_what_ran_in_other_processes_is_told_too():
    own = {"threads": 1, "kernels": {"ssd": "native"}}
    others = [
        {"kernels": {"ssd": "chunked", "int8_ssd": "native"}, "observers": {"b:B": "2"}},
        {"kernels": {"ssd": "native"}, "observers": {"a:A": "1"}, "calibrations": {"c:c": "3"}},
    ]
    assert merged(own, others) == {
        "threads": 1,
        "kernels": {"ssd": "chunked+native", "int8_ssd": "native"},
        "observers": {"a:A": "1", "b:B": "2"},
        "calibrations": {"c:c": "3"},
    }


def test_no_other_process_changes_nothing():
    assert merged(provenance(), []) == provenance()


def test_a_class_names_the_processor_and_never_a_host():
    assert machine_class().startswith("cpu-")
    assert machine_class() == machine_class("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
def test_a_gpu_is_a_class_of_its_own():
    assert machine_class("cuda").startswith("cuda-sm")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without CUDA")
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(BadParameter, match="there is no device cuda") as error:
        checked_device("cuda")
    assert "\n" not in str(error.value)
