from __future__ import annotations

from dccl_flower.simulations.reports import command_line


def test_the_command_over_a_table_tells_no_path_of_a_machine():
    overrides = ["seed=1", "data.path=some/where", "devices.store=else/where", "seed=1"]
    command = command_line("arms", "probe", overrides, ["--seeds", "0,1"])
    assert command == "dccl arms probe seed=1 data.path=PATH/TO/cifar10 --seeds 0,1"


def test_a_data_set_goes_by_the_name_it_has_on_the_hub():
    command = command_line("search", "fashion_mnist", ["data.path=some/where"])
    assert command == "dccl search fashion_mnist data.path=PATH/TO/fashion_mnist"
