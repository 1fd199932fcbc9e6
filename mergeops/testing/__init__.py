"""Laws for what plug-ins add, as pytest suites: a plug-in's tests subclass one and have its tests.

It needs pytest, and nothing else of mergeops imports it.

Stands on: kernels, lazy_torch, methods.
"""

try:
    import pytest
except ModuleNotFoundError as error:
    if error.name != "pytest":
        raise
    raise ModuleNotFoundError(
        "mergeops.testing needs pytest, which is not installed: pip install pytest", name="pytest"
    ) from None

# So that a law that fails shows the values that it compares.
pytest.register_assert_rewrite("mergeops.testing.method_contract")

from mergeops.testing.method_contract import MethodContract  # noqa: E402

__all__ = ["MethodContract"]
