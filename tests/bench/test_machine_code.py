"""benchmarks/element_count.py counts instructions for each element; arguments.py drops what never runs."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from arguments import ARGUMENTS_BEGIN, constants, with_arguments
from disassembly import amd, sass
from element_count import Element, count

BFLOAT16_PAIR = Element(loaded=4, stored=2)


def code(text):
    """A kernel of these lines: labels end with a colon."""
    lines = [".text.kernel:"]
    for i, line in enumerate(text.strip().splitlines()):
        word = line.strip()
        lines.append(word if word.endswith(":") else f"        /*{16 * i:04x}*/                   {word} ;")
    return sass("\n".join(lines), {"kernel"})["kernel"]


PACKS = """
    S2R R0, SR_TID.X
    @P3 BRA `(.L_x_9)
.L_x_1:
    LDG.E.128 R4, desc[UR4][R2.64]
    LDG.E.128 R8, desc[UR4][R2.64+0x10]
    FADD R4, R4, R8
    @P0 BRA `(.L_x_3)
.L_x_2:
    STG.E.128 desc[UR4][R2.64], R4
    IADD3 R2, R2, 0x10, RZ
    @P1 BRA `(.L_x_1)
    EXIT
.L_x_3:
    MUFU.LG2 R4, R4
    FMUL R4, R4, R8
    BRA `(.L_x_2)
.L_x_9:
    EXIT
"""


def test_a_turn_is_as_long_as_its_shortest_way():
    found = count(code(PACKS), BFLOAT16_PAIR)
    assert found.elements == 8
    assert found.per_element(code(PACKS)) == 7 / 8
    assert found.beside == 3
    assert (found.widths(code(PACKS), "load"), found.widths(code(PACKS), "store")) == ("2x128", "1x128")


def test_special_functions_of_the_way_are_counted():
    always = code(PACKS.replace("@P0 BRA `(.L_x_3)", "BRA `(.L_x_3)"))
    found = count(always, BFLOAT16_PAIR)
    assert found.per_element(always) == 10 / 8
    assert found.per_element(always, lambda each: each.is_special) == 1 / 8


UNROLLED = """
.L_x_1:
    LDG.E.128 R4, desc[UR4][R2.64]
    LDG.E.128 R8, desc[UR4][R2.64+0x10]
    LDG.E.128 R12, desc[UR4][R2.64+0x20]
    LDG.E.128 R16, desc[UR4][R2.64+0x30]
    FADD R4, R4, R8
    FADD R12, R12, R16
    STG.E.128 desc[UR4][R2.64], R4
    STG.E.128 desc[UR4][R2.64+0x10], R12
    @P1 BRA `(.L_x_1)
.L_x_2:
    LDG.E.U16 R4, desc[UR4][R2.64]
    LDG.E.U16 R8, desc[UR4][R2.64+0x10]
    FADD R4, R4, R8
    STG.E.U16 desc[UR4][R2.64], R4
    @P1 BRA `(.L_x_2)
    EXIT
"""


def test_an_unrolled_loop_counts_for_all_its_elements_and_its_rest_not_at_all():
    found = count(code(UNROLLED), BFLOAT16_PAIR)
    assert (found.elements, found.per_element(code(UNROLLED))) == (16, 9 / 16)


def test_a_shorter_way_that_loads_less_is_not_the_main_one():
    # As where all of a pack is ignored, and zeros are stored.
    ignoring = code(
        PACKS.replace("S2R R0, SR_TID.X", "NOP").replace(".L_x_1:", ".L_x_1:\n @P4 BRA `(.L_x_2)")
    )
    found = count(ignoring, BFLOAT16_PAIR)
    assert found.widths(ignoring, "load") == "2x128"
    assert found.per_element(ignoring) == 8 / 8


def test_a_failed_assertion_is_no_part_of_a_loop():
    asserting = code(PACKS.replace("MUFU.LG2 R4, R4", "CALL.ABS.NOINC R4"))
    assert count(asserting, BFLOAT16_PAIR).beside == 0


def test_a_call_of_a_label_is_a_jump():
    leaving = PACKS.replace("@P1 BRA `(.L_x_1)", "@!P1 CALL.REL.NOINC `(.L_x_9)\n    BRA `(.L_x_1)")
    assert count(code(leaving), BFLOAT16_PAIR).per_element(code(leaving)) == 8 / 8


def test_a_kernel_without_stores_misses_them():
    assert count(code("LDG.E R0, desc[UR4][R2.64]\nEXIT"), BFLOAT16_PAIR).missing == 2


ROWS = """
.L_x_1:
    MOV R2, R3
.L_x_2:
    LDG.E.128 R4, desc[UR4][R2.64]
    MUFU.EX2 R4, R4
    @P0 BRA `(.L_x_2)
    BAR.SYNC 0x0
.L_x_3:
    LDG.E.128 R4, desc[UR4][R2.64]
    FMUL R4, R4, R5
    STG.E.128 desc[UR4][R2.64], R4
    @P1 BRA `(.L_x_3)
    @P2 BRA `(.L_x_1)
    EXIT
"""


def test_loops_over_a_row_take_as_many_turns_as_it_needs():
    rows = code(ROWS)
    # Of a thread's 800 elements, 8 are on the way of 10 instructions; the loops take 99 turns, of 3 and of 4.
    found = count(rows, Element(loaded=2, stored=2), share=800)
    assert found.per_element(rows) == pytest.approx((10 + 99 * 3 + 99 * 4) / 800)


def test_a_row_that_is_masked_counts_what_it_has():
    held = code(ROWS.replace("@P0 BRA `(.L_x_2)", "NOP").replace("@P1 BRA `(.L_x_3)", "NOP"))
    assert count(held, Element(loaded=2, stored=2), share=8).per_element(held) == 10 / 8
    assert count(held, Element(loaded=2, stored=2), share=6).per_element(held) == 10 / 6
    # A turn of two rows, each of 4 elements of the thread.
    assert count(held, Element(loaded=2, stored=2), share=4).per_element(held) == 10 / 8


def test_a_softmax_without_exponentials_is_not_its_main_way():
    skipping = code(ROWS.replace("MUFU.EX2 R4, R4", "@P4 BRA `(.L_x_5)\nMUFU.EX2 R4, R4\n.L_x_5:\nNOP"))
    skipping = count(skipping, Element(2, 2, exponentials=1 / 8), share=8)
    assert [way.exponentials for way, _ in skipping.parts] == [1]


DECIDED = f"""
    ULDC.64 UR4, c[0x0][{ARGUMENTS_BEGIN:#x}]
    LDC.U8 R7, c[0x0][{ARGUMENTS_BEGIN + 8:#x}]
    ISETP.NE.U32.AND P0, PT, RZ, UR4, PT
    ISETP.NE.AND.EX P0, PT, RZ, UR5, PT, P0
    PRMT R7, R7, 0x9910, RZ
.L_x_1:
    LDG.E.128 R8, desc[UR6][R2.64]
    @P0 STG.E.128 desc[UR6][R4.64], R8
    ISETP.NE.AND P1, PT, R7, 0xf, PT
    @P1 BRA `(.L_x_2)
    STG.E.128 desc[UR6][R2.64], R8
    BRA `(.L_x_3)
.L_x_2:
    STG.E.64 desc[UR6][R2.64], R8
.L_x_3:
    @P2 BRA `(.L_x_1)
    EXIT
"""


@pytest.mark.parametrize(
    ("pointer", "dtype", "stores", "instructions"),
    [(0, 15, "1x128", 7), (1 << 40, 15, "2x128", 7), (0, 7, "1x64", 6), (256, 7, "1x128 1x64", 6)],
)
def test_arguments_decide_branches_and_predicates(pointer, dtype, stores, instructions):
    argument = pointer.to_bytes(8, "little") + bytes([dtype])
    sent = with_arguments(code(DECIDED), constants(blocks=3, threads=128, argument=argument))
    found = count(sent, Element(loaded=2, stored=2))
    assert found.widths(sent, "store") == stores
    assert sum(way.instructions for way, _ in found.parts) == instructions


def test_what_is_loaded_or_changes_in_a_loop_is_not_known():
    loaded = DECIDED.replace(f"LDC.U8 R7, c[0x0][{ARGUMENTS_BEGIN + 8:#x}]", "LDG.E.U8 R7, desc[UR6][R2.64]")
    changing = DECIDED.replace("@P2 BRA `(.L_x_1)", "IADD3 R7, R7, 0x1, RZ\n    @P2 BRA `(.L_x_1)")
    for text in (loaded, changing):
        sent = with_arguments(code(text), constants(3, 128, bytes(8) + bytes([15])))
        stores = [each.text for block in sent.blocks for each in block.instructions if each.access]
        assert sum("STG.E.64" in store for store in stores) == 1


def test_a_called_function_leaves_what_it_does_not_write():
    function = "\n$__internal_0_$__divide:\n    MOV {}, 0x1\n    RET.REL.NODEC R20 `(kernel)\n"
    called = DECIDED.replace(".L_x_1:", "    CALL.REL.NOINC `($__internal_0_$__divide)\n.L_x_1:", 1)
    for register, ways in (("R50", 1), ("R7", 2)):
        text = called + function.format(register)
        sent = with_arguments(code(text), constants(3, 128, bytes(8) + bytes([15])))
        (loop,) = sent.loops
        assert len(sent.ways(loop)) == ways


AMD = """
kernel:
.LBB0_1:
        global_load_dwordx4 v[0:3], v[4:5], off
        v_exp_f32_e32 v0, v0
        global_store_dwordx4 v[4:5], v[0:3], off
        s_cbranch_scc1 .LBB0_1
        s_endpgm
.Lfunc_end0:
    .private_segment_fixed_size: 16
    .vgpr_count:     12
"""


def test_assembly_of_amd_is_counted_alike():
    kernel = amd(AMD, "kernel")
    found = count(kernel.code, Element(loaded=2, stored=2))
    assert (kernel.registers, kernel.local_bytes) == (12, 16)
    assert found.per_element(kernel.code) == 4 / 8
    assert found.per_element(kernel.code, lambda each: each.is_exponential) == 1 / 8
