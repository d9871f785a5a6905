"""A torch model as a client app: a module, a function that trains it, a function that measures it.

pip install fedmq[torch]
fedmq worker --connect tcp://127.0.0.1:5560 --app torch_worker:app --name ward-3
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedmq import TaskContext
from fedmq.worker.adapters.torch import TorchApp


def model() -> nn.Module:
    """Batch norm included: its running means are averaged, its count of batches is not."""
    return nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def data() -> TensorDataset:
    """Stands for what lies on this machine: two classes, told apart by the sign of the first column."""
    inputs = torch.randn(512, 20, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, (inputs[:, 0] > 0).long())


def train(net: nn.Module, task: TaskContext) -> tuple[int, dict[str, float]]:
    optimizer = torch.optim.SGD(net.parameters(), lr=float(task.config.get("lr", 0.1)))
    loader = DataLoader(data(), batch_size=64, shuffle=True)
    for inputs, labels in loader:
        task.check_cancelled()  # leave early when the broker no longer wants this
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
    return len(loader.dataset), {"train_loss": float(loss)}


def evaluate(net: nn.Module, task: TaskContext) -> tuple[int, dict[str, float]]:
    inputs, labels = data().tensors
    outputs = net(inputs)
    loss = float(nn.functional.cross_entropy(outputs, labels))
    return len(labels), {"loss": loss, "accuracy": float((outputs.argmax(1) == labels).float().mean())}


app = TorchApp(model, train, evaluate)
