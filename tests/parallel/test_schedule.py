"""Pipeline schedules, played by a simulator in which a send is complete only when it has been received."""

from collections import deque

import pytest

from minitrain.parallel.schedule import SCHEDULES, Instruction, Kind, forward_only

SIZES = [(p, m) for p in range(1, 9) for m in (1, 2, 3, 4, 7, 8, 16)]


class DeadlockError(AssertionError):
    pass


def play(stages: list[list[Instruction]]) -> list[list[Instruction]]:
    """Runs all stages, one instruction at a time wherever one is possible, with the rules of `Outbox`.

    A send starts at once, but not before the previous message to the same neighbour was received. A receive
    takes the oldest message of its neighbour, which must be of the expected micro-batch. Returns what each
    stage did; raises DeadlockError if nobody can go on.
    """
    n = len(stages)
    todo = [deque(s) for s in stages]
    done: list[list[Instruction]] = [[] for _ in stages]
    mail: dict[tuple[int, int], deque[Instruction]] = {}
    neighbour = {Kind.SEND_ACT: 1, Kind.SEND_GRAD: -1, Kind.RECV_ACT: -1, Kind.RECV_GRAD: 1}
    while any(todo):
        progress = False
        for s in range(n):
            while todo[s]:
                kind, micro = todo[s][0]
                other = s + neighbour.get(kind, 0)
                if kind in (Kind.SEND_ACT, Kind.SEND_GRAD):
                    box = mail.setdefault((s, other), deque())
                    if box:
                        break
                    box.append(todo[s][0])
                elif kind in (Kind.RECV_ACT, Kind.RECV_GRAD):
                    box = mail.setdefault((other, s), deque())
                    if not box:
                        break
                    sent = box.popleft()
                    assert sent.micro == micro, f"stage {s} expects micro-batch {micro}, gets {sent.micro}"
                done[s].append(todo[s].popleft())
                progress = True
        if not progress:
            raise DeadlockError(f"{[list(t)[:1] for t in todo]}")
    assert not any(mail.values()), "a message was sent and never received"
    return done


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("n_stages", "n_micro"), SIZES)
def test_runs_to_the_end_with_sends_that_wait(name: str, n_stages: int, n_micro: int) -> None:
    stages = [list(SCHEDULES[name](s, n_stages, n_micro)) for s in range(n_stages)]
    done = play(stages)
    for s, work in enumerate(done):
        for kind in (Kind.FORWARD, Kind.BACKWARD):
            assert [i.micro for i in work if i.kind is kind] == list(range(n_micro))
        losses = [i.micro for i in work if i.kind is Kind.LOSS]
        assert losses == (list(range(n_micro)) if s == n_stages - 1 else [])
        for m in range(n_micro):
            assert work.index(Instruction(Kind.FORWARD, m)) < work.index(Instruction(Kind.BACKWARD, m))


@pytest.mark.parametrize(("n_stages", "n_micro"), SIZES)
def test_forward_only_runs_to_the_end(n_stages: int, n_micro: int) -> None:
    play([list(forward_only(s, n_stages, n_micro)) for s in range(n_stages)])


def in_flight(work: list[Instruction]) -> int:
    """The most micro-batches whose activations are kept at once."""
    most = now = 0
    for kind, _ in work:
        now += (kind is Kind.FORWARD) - (kind is Kind.BACKWARD)
        most = max(most, now)
    return most


@pytest.mark.parametrize(("n_stages", "n_micro"), SIZES)
def test_activations_in_flight(n_stages: int, n_micro: int) -> None:
    for s in range(n_stages):
        assert in_flight(list(SCHEDULES["1f1b"](s, n_stages, n_micro))) == min(n_micro, n_stages - s)
        assert in_flight(list(SCHEDULES["gpipe"](s, n_stages, n_micro))) == n_micro


def test_sends_that_wait_for_their_own_receive_deadlock() -> None:
    """Why `Outbox` exists: with a blocking send in the place of a started one, 1F1B stands still. So the
    simulator can fail.
    """

    def blocking(work: list[Instruction]) -> list[Instruction]:
        """A send that waits is as good as two: the second waits until the first was received."""
        sends = (Kind.SEND_ACT, Kind.SEND_GRAD)
        return [twice for step in work for twice in ([step, step] if step.kind in sends else [step])]

    with pytest.raises(DeadlockError):
        play([blocking(list(SCHEDULES["1f1b"](s, 2, 4))) for s in range(2)])


def test_a_receive_in_the_wrong_order_is_seen() -> None:
    stages = [list(SCHEDULES["1f1b"](s, 2, 4)) for s in range(2)]
    receives = [i for i, step in enumerate(stages[1]) if step.kind is Kind.RECV_ACT]
    a, b = receives[:2]
    stages[1][a], stages[1][b] = stages[1][b], stages[1][a]
    with pytest.raises(AssertionError, match="expects micro-batch 1, gets 0"):
        play(stages)
