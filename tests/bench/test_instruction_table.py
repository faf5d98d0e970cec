"""The README's table of instructions comes from benchmarks/results/gpu-report.csv."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from instruction_table import table

HEAD = "loss,dtype,shape,special,direction,backend,target,instructions,is_sure"
ROWS = [
    "mse_loss,bfloat16,8192x1024,,forward,cuda,sm_90,8.66,True",
    "mse_loss,bfloat16,8192x1024,,backward,cuda,sm_90,6.6,False",
    "mse_loss,bfloat16,8192x1024,,forward,triton,sm_90,11.38,True",
    "mse_loss,bfloat16,8192x1024,,forward,triton,sm_80,99,True",
    "mse_loss,float32,8192x1024,,forward,triton,sm_90,99,True",
    'mse_loss,bfloat16,8192x1024,"slice [:, 1:]",forward,triton,sm_90,99,True',
]


def test_the_table_shows_both_backends_and_what_is_not_sure(tmp_path):
    path = tmp_path / "report.csv"
    path.write_text("\n".join([HEAD, *ROWS]))
    assert "| `mse_loss`, 8192x1024 | 8.7 / ≥ 6.6 | 11.4 / - |" in table(path).splitlines()
