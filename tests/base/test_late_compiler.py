"""bitsandbytes without torch's compiler, until something is compiled."""

import subprocess
import sys

import pytest

pytest.importorskip("bitsandbytes")

LATE = "from rapidun.base.late_compiler import compile_late; compile_late(); compile_late()"


def told(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_peft_brings_bitsandbytes_and_no_compiler() -> None:
    """Asking whether it is there does not use the finder up; torch.compile is itself afterwards; sources are found."""
    code = f"""
{LATE}
import sys, importlib.util, inspect, torch
own = torch.compile
assert importlib.util.find_spec("bitsandbytes") and importlib.util.find_spec("bitsandbytes")
import peft, peft.tuners.lora.bnb, bitsandbytes
assert torch.compile is own and "torch._inductor.compile_fx" not in sys.modules
assert "def " in inspect.getsource(bitsandbytes.backends.default.ops)
assert bitsandbytes.__spec__.name == "bitsandbytes" and bitsandbytes.__file__.endswith("__init__.py")
print("bitsandbytes" in sys.modules)
"""
    assert told(code) == "True"
    assert told("import sys, peft; print('torch._inductor.compile_fx' in sys.modules)") == "True"


@pytest.mark.slow
def test_what_is_compiled_late_computes_the_same() -> None:
    """Quantising on the CPU by its default backend, with the compiler and without having loaded it before."""
    code = """
import torch, bitsandbytes.functional as F
x = torch.linspace(-3, 3, 4096).sin().view(64, 64)
packed, state = F.quantize_4bit(x, quant_type="nf4")
print(packed.flatten()[:40].tolist(), float(F.dequantize_4bit(packed, state).double().sum()))
"""
    assert told(f"{LATE}\n{code}") == told(code)


def test_a_function_is_compiled_once_at_its_first_call() -> None:
    from rapidun.base.late_compiler import _later

    calls: list[object] = []

    def compiler(function: object, **settings: object) -> object:
        calls.append((function, settings))
        return function

    late = _later(compiler)

    @late(dynamic=False)
    def double(x: int) -> int:
        return 2 * x

    plain = late(lambda x: x + 1)
    assert calls == []
    assert double(3) == 6 and double(4) == 8 and plain(1) == 2
    assert [settings for _, settings in calls] == [{"dynamic": False}, {}]
    assert double.__name__ == "double"
