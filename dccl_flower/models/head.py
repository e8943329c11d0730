from dccl_flower.models.zoo import find_head as _f


def find_head(model, *, example=None, name=None):
    return _f(model) if name is None else (name, model.get_submodule(name))
