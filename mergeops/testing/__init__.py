"""Laws for what plug-ins add, as pytest suites: a plug-in's tests subclass one and have its tests.

It needs pytest, and nothing else of mergeops imports it.

Stands on: errors, executors, kernels, lazy_torch, methods, recipe.
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
for contract in ("executor_contract", "method_contract"):
    pytest.register_assert_rewrite(f"mergeops.testing.{contract}")

from mergeops.testing.executor_contract import ExecutorContract  # noqa: E402
from mergeops.testing.method_contract import MethodContract  # noqa: E402

__all__ = ["ExecutorContract", "MethodContract"]
