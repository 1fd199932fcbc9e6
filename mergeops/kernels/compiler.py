"""numba as a compiler only: the kernels become one object file, which needs nothing of numba.

Each kernel gets an entry ``int64 f(int64 *slots)``. An array takes a slot for its address and one
for each size, a number one slot; a float32 comes as float64. What a kernel returns, nothing, a bool
or an int64, comes back as a number; ``RAISED`` says that it raised.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba

from mergeops.kernels.bits import KERNELS, OPTIONS
from mergeops.kernels.blocks import RAISED

Kind = tuple[str, int]
"""Of an argument: dtype, dimensions; 0 for a number."""

for _module in pkgutil.iter_modules([str(Path(__file__).parent)], "mergeops.kernels."):
    importlib.import_module(_module.name)

_OPTIONS = OPTIONS | {"nogil": True}


def compiled() -> bytes:
    """A line that tells the kinds of each kernel's arguments, as JSON, and the object code of all
    kernels for this processor.

    Raises:
        RuntimeError: a kernel needs something that is not there without numba.
    """
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="default",
    )
    module = llvm.parse_assembly("")
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    for name, (types, function) in KERNELS.items():
        dispatcher = numba.njit(types, **_OPTIONS)(function)
        part = llvm.parse_assembly(dispatcher.inspect_llvm(types))
        result: Any = dispatcher.overloads[types]
        symbol = result.fndesc.llvm_func_name
        of: Any = numba.types.unliteral(result.signature.return_type)  # type: ignore[no-untyped-call]
        parameters = [str(argument.type) for argument in part.get_function(symbol).arguments]
        module.link_in(part)
        entry = llvm.parse_assembly(_entry(name, symbol, types, parameters, str(of)))
        entry.triple, entry.data_layout = module.triple, module.data_layout
        module.link_in(entry)
    missing = [f.name for f in module.functions if f.is_declaration and f.name[:5] != "llvm."]
    if missing:
        raise RuntimeError(f"kernels call {', '.join(missing)}, which is not there without numba")
    module.verify()
    kinds = {name: [_kind(t) for t in types] for name, (types, _) in KERNELS.items()}
    code: bytes = machine.emit_object(module)
    return json.dumps(kinds).encode() + b"\n" + code


_RETURNED = {
    "none": "%number = add i64 0, 0",
    "bool": "%byte = load i8, ptr %result\n%number = zext i8 %byte to i64",
    "int64": "%number = load i64, ptr %result",
}


def _kind(of: Any) -> Kind:
    return (str(of.dtype), of.ndim) if isinstance(of, numba.types.Array) else (str(of), 0)


def _entry(
    name: str, symbol: str, types: Sequence[Any], parameters: Sequence[str], returned: str
) -> str:
    """LLVM's text of an entry, which calls a function as numba's own callers do."""
    lines: list[str] = []
    numbers = count()

    def value(text: str) -> str:
        lines.append(f"%v{next(numbers)} = {text}")
        return lines[-1].split()[0]

    slots = count()

    def slot(of: str) -> str:
        place = value(f"getelementptr i64, ptr %slots, i64 {next(slots)}")
        return value(f"load {of}, ptr {place}")

    passed = [("ptr", "%result"), ("ptr", "%raised")]
    for each in types:
        dtype, ndim = _kind(each)
        if ndim:
            address, sizes = slot("ptr"), [slot("i64") for _ in range(ndim)]
            strides = [str(each.dtype.bitwidth // 8)]
            for size in sizes[:0:-1]:
                strides.insert(0, value(f"mul i64 {strides[0]}, {size}"))
            numel = sizes[0]
            for size in sizes[1:]:
                numel = value(f"mul i64 {numel}, {size}")
            passed += [("ptr", "null")] * 2 + [("i64", numel), ("i64", strides[-1])]
            passed += [("ptr", address)] + [("i64", x) for x in (*sizes, *strides)]
        elif dtype == "float64":
            passed.append(("double", slot("double")))
        elif dtype == "float32":
            passed.append(("float", value(f"fptrunc double {slot('double')} to float")))
        elif dtype == "bool":
            passed.append(("i8", value(f"trunc i64 {slot('i64')} to i8")))
        else:
            passed.append(("i64", slot("i64")))
    if [kind for kind, _ in passed] != list(parameters):
        raise RuntimeError(f"numba passes arguments to {name} in a way that is not known")
    return f"""
declare i32 @{symbol}({", ".join(parameters)})
define i64 @mergeops_{name}(ptr %slots) {{
%result = alloca i64
store i64 0, ptr %result
%raised = alloca ptr
{chr(10).join(lines)}
%status = call i32 @{symbol}({", ".join(f"{kind} {x}" for kind, x in passed)})
{_RETURNED[returned]}
%fine = icmp eq i32 %status, 0
%answer = select i1 %fine, i64 %number, i64 {RAISED}
ret i64 %answer
}}
"""
