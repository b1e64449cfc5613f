"""The seccomp program, run by an interpreter of classic BPF: what it answers to any call on both architectures."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.sandboxes.bubblewrap.seccomp import (
    NO_SUCH_CALL,
    REFUSED,
    RETURN_ALLOW,
    RETURN_ERRNO,
    RETURN_KILL_PROCESS,
    filter_program,
)
from server.sandboxes.bubblewrap.syscalls import ARCHITECTURES, HIGHEST_REVIEWED

MACHINES = sorted(ARCHITECTURES)
NAMESPACE_FLAGS = 0x7E020000
HIGH = st.integers(min_value=0, max_value=2**32 - 1)
WORD = st.integers(min_value=0, max_value=2**64 - 1)


def verdict(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the kernel would be told: an interpreter of the five instructions that the program uses."""
    program = filter_program(machine)
    words = (*arguments, *(0,) * (6 - len(arguments)))
    audit = ARCHITECTURES[machine].audit if audit is None else audit
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit, 0, *(word & (2**64 - 1) for word in words))
    accumulator = position = 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("=HBBI", program, 8 * position)
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x06:
            return int(operand)
        else:
            met = {
                0x15: accumulator == operand,
                0x25: accumulator > operand,
                0x45: bool(accumulator & operand),
            }[code]
            position += if_true if met else if_false


def refusal(code: int) -> int:
    return RETURN_ERRNO | code


@pytest.mark.parametrize("machine", MACHINES)
def test_every_refused_call_is_refused_whatever_its_arguments(machine: str) -> None:
    numbers = ARCHITECTURES[machine].numbers
    for name in (*REFUSED, *NO_SUCH_CALL):
        if name in numbers:
            expected = refusal(errno.ENOSYS if name in NO_SUCH_CALL else errno.EPERM)
            assert verdict(machine, numbers[name], *(2**64 - 1,) * 6) == expected, name
            assert verdict(machine, numbers[name]) == expected, name


@pytest.mark.parametrize("machine", MACHINES)
def test_every_name_of_the_lists_is_a_call_of_some_architecture(machine: str) -> None:
    known = {name for architecture in ARCHITECTURES.values() for name in architecture.numbers}
    assert {*REFUSED, *NO_SUCH_CALL} <= known
    special = {"clone", "ioctl", "personality", "socket", "socketpair"}
    assert set(ARCHITECTURES[machine].numbers) <= {*REFUSED, *NO_SUCH_CALL, *special}


@given(st.sampled_from(MACHINES), st.integers(min_value=0, max_value=2**32 - 1), st.lists(WORD, min_size=6, max_size=6))
def test_a_foreign_abi_ends_the_process(machine: str, number: int, arguments: list[int]) -> None:
    others = {0x40000003, 0xC00000B7, 0xC000003E, 0x40000028, 0} - {ARCHITECTURES[machine].audit}
    assert {verdict(machine, number, *arguments, audit=audit) for audit in others} == {RETURN_KILL_PROCESS}


@given(st.sampled_from(MACHINES), st.integers(min_value=HIGHEST_REVIEWED + 1, max_value=2**32 - 1))
def test_calls_that_nobody_reviewed_do_not_exist(machine: str, number: int) -> None:
    assert verdict(machine, number) == refusal(errno.ENOSYS)


@given(st.sampled_from(MACHINES), WORD)
def test_s02_clone_makes_processes_and_threads_but_no_namespaces(machine: str, flags: int) -> None:
    """S02: only the low 32 bits are the kernel's flags."""
    answer = verdict(machine, ARCHITECTURES[machine].numbers["clone"], flags)
    assert answer == (refusal(errno.EPERM) if flags & NAMESPACE_FLAGS else RETURN_ALLOW)


@given(st.sampled_from(MACHINES), st.sampled_from([0x5412, 0x541C, 0x5423]), HIGH, WORD)
def test_s01_terminal_requests_are_refused_by_their_low_half(machine: str, request: int, high: int, fd: int) -> None:
    """S01: CVE-2019-10063 was a comparison of all 64 bits."""
    number = ARCHITECTURES[machine].numbers["ioctl"]
    assert verdict(machine, number, fd, request | high << 32) == refusal(errno.EPERM)


@given(st.sampled_from(MACHINES), WORD, st.integers(min_value=0, max_value=2**32 - 1))
def test_other_requests_pass(machine: str, fd: int, request: int) -> None:
    refused = request in (0x5412, 0x541C, 0x5423)
    answer = verdict(machine, ARCHITECTURES[machine].numbers["ioctl"], fd, request)
    assert answer == (refusal(errno.EPERM) if refused else RETURN_ALLOW)


@given(
    st.sampled_from(MACHINES), st.sampled_from(["socket", "socketpair"]), st.integers(0, 60), HIGH, st.integers(0, 40)
)
def test_s05_four_families_exist(machine: str, call: str, family: int, high: int, protocol: int) -> None:
    """S05: Unix, both internets, and the netlink that lists interfaces."""
    answer = verdict(machine, ARCHITECTURES[machine].numbers[call], family | high << 32, 1, protocol | high << 32)
    allowed = family in (1, 2, 10) or (family == 16 and protocol == 0)
    assert answer == (RETURN_ALLOW if allowed else refusal(errno.EAFNOSUPPORT))


@given(st.sampled_from(MACHINES), st.integers(min_value=0, max_value=HIGHEST_REVIEWED), st.lists(WORD, max_size=6))
def test_all_other_calls_are_allowed(machine: str, number: int, arguments: list[int]) -> None:
    if number not in ARCHITECTURES[machine].numbers.values():
        assert verdict(machine, number, *arguments) == RETURN_ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_fits_the_kernel(machine: str) -> None:
    program = filter_program(machine)
    assert len(program) % 8 == 0
    assert len(program) // 8 <= 4096


def test_an_unknown_architecture_has_no_filter() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        filter_program("riscv64")
