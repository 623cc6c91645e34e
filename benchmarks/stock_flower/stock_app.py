"""What one would write first with Flower: FedAvg, a train and an evaluate message a round, the published Multi-Unet.

The sites do nothing but load and return the weights, so that a round's time is Flower's own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from multiseg.models.builders import multi_unet

client = ClientApp()
server = ServerApp()


def loaded(message: Message) -> torch.nn.Module:
    network = multi_unet(6, 1)
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return network


@client.train()
def train(message: Message, context: Context) -> Message:
    arrays = ArrayRecord(loaded(message).state_dict())
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    loaded(message)
    content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "dice": 0.0})})
    return Message(content=content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    times: list[float] = []

    def note(number: int, arrays: ArrayRecord) -> MetricRecord:
        times.append(time.time())
        Path(str(context.run_config["times"])).write_text(json.dumps(times))
        return MetricRecord({})

    sites = int(context.run_config["sites"])
    strategy = FedAvg(min_available_nodes=sites, min_train_nodes=sites, min_evaluate_nodes=sites)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(multi_unet(6, 1).state_dict()),
        num_rounds=int(context.run_config["rounds"]),
        train_config=ConfigRecord({}),
        evaluate_fn=note,
    )
