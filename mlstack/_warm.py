"Imported once by `nbdev-test` before it starts its workers, so that each notebook does not pay for torch again (not generated)."


def warm(cells):
    import torch  # noqa: F401
