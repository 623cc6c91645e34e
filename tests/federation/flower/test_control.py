"""The SuperLink's control calls, against one that answers as Flower's does."""

from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse
from flwr.proto.run_pb2 import Run

from multiseg.federation.flower.control import Control


class Calls:
    """A SuperLink with so many runs, which lists the last 20 where it is asked for no number."""

    def __init__(self, num_runs: int) -> None:
        self.runs = [Run(run_id=number, pending_at=f"2031-05-05T{number:04d}") for number in range(1, num_runs + 1)]

    def ListRuns(self, request: ListRunsRequest) -> ListRunsResponse:
        limit = request.limit if request.HasField("limit") else 20
        newest = self.runs[::-1][request.skip : request.skip + limit]
        return ListRunsResponse(run_dict={run.run_id: run for run in newest})


def test_all_runs_are_listed_and_not_the_last_twenty_alone() -> None:
    for number in (0, 1, 100, 250):
        found = Control(Calls(number)).runs()  # type: ignore[arg-type]
        assert [run.run_id for run in found] == list(range(number, 0, -1))


def test_the_newest_runs_alone() -> None:
    found = Control(Calls(250)).runs(newest=20)  # type: ignore[arg-type]
    assert [run.run_id for run in found] == list(range(250, 230, -1))
