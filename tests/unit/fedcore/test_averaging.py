"""FederatedAveraging for notebooks: the mean is exact, and right where notebooks are wrong."""

import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedmq.fedcore import FederatedAveraging
from fedmq.fedcore.errors import ClientAppError, LayoutError

Data = list[tuple[torch.Tensor, torch.Tensor]]


def net() -> nn.Module:
    """With batch norm, for its integer buffer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def client(seed: int, examples: int = 64) -> Data:
    """Batches of a problem that can be learned."""
    x = torch.randn(examples, 4, generator=torch.Generator().manual_seed(seed))
    y = (x[:, 0] > 0).long()
    return list(zip(x.split(16), y.split(16), strict=True))


def filled(model: nn.Module, value: float) -> dict[str, torch.Tensor]:
    """The model's state dict, all floats at one value."""
    return {
        name: torch.full_like(tensor, value) if tensor.is_floating_point() else tensor + 5
        for name, tensor in model.state_dict().items()
    }


def test_rounds_learn() -> None:
    """Five clients, ten rounds, one model that is right nearly always."""
    fed = FederatedAveraging(net(), num_clients=5)
    clients = [client(seed) for seed in range(5)]
    losses = [fed.train_round(clients, epochs=2, lr=0.1) for _ in range(10)]
    assert losses[-1] < 0.5 * losses[0]
    x, y = client(99, 500)[0]
    assert (fed.model.eval()(x).argmax(1) == y).float().mean() > 0.8


def test_the_mean_is_weighted_by_examples() -> None:
    """Σ n w / Σ n, into the model itself."""
    fed = FederatedAveraging(net(), 2)
    updates = [(filled(fed.model, 1.0), 300), (filled(fed.model, 5.0), 100)]
    state = fed.aggregate(updates)
    assert all(t.eq(2).all() for t in state.values() if t.is_floating_point())
    assert all(p.eq(2).all() for p in fed.model.parameters())


def test_weights_may_be_given_and_bare_states_count_the_same() -> None:
    """As notebooks call it: a list of state dicts, with or without weights."""
    fed = FederatedAveraging(net(), 2)
    states = [filled(fed.model, 1.0), filled(fed.model, 5.0)]
    assert fed.aggregate(states, [0.75, 0.25])["0.bias"].eq(2).all()
    assert fed.aggregate(states)["0.bias"].eq(3).all()


@pytest.mark.parametrize("weights", [[1e-6, 1.4e-6], [3, 1e10], [0.1, 0.3], [1e-320, 1e-320], [1e300, 3e300]])
def test_only_the_ratio_of_weights_counts(weights: list[float]) -> None:
    """Shares that add up to one, tiny or huge ones: the mean is that of exact arithmetic, rounded to float32."""
    model = net()
    fed = FederatedAveraging(model, num_clients=2)
    fed.aggregate([filled(model, 0.0), filled(model, 1.0)], weights=weights)
    exact = Fraction(weights[1]) / (Fraction(weights[0]) + Fraction(weights[1]))
    for parameter in model.parameters():
        assert parameter.detach() == pytest.approx(float(exact), rel=1e-7)


def test_an_update_may_be_a_list_and_must_be_a_pair() -> None:
    """What JSON or a notebook makes of a tuple is taken; anything else is one clear error."""
    model = net()
    fed = FederatedAveraging(model, num_clients=2)
    fed.aggregate([[filled(model, 0.0), 1], [filled(model, 1.0), 3]])  # type: ignore[list-item]
    assert all((p == 0.75).all() for p in model.parameters())
    with pytest.raises(ClientAppError, match="a pair of it"):
        fed.aggregate([3])  # type: ignore[list-item]


def test_data_that_can_be_read_once_is_said() -> None:
    """The second pass over an iterator is empty; that is not a client without examples."""
    fed = FederatedAveraging(net(), num_clients=1)
    with pytest.raises(ClientAppError, match="not an iterator"):
        fed.train_round([iter(list(client(0)))], epochs=2)


def test_integer_buffers_are_not_averaged() -> None:
    """`num_batches_tracked` stays the model's own, and an integer."""
    fed = FederatedAveraging(net(), 1)
    count = fed.aggregate([(filled(fed.model, 1.0), 10)])["1.num_batches_tracked"]
    assert count.dtype == torch.int64
    assert count.item() == 0


def test_the_order_of_clients_does_not_matter() -> None:
    """To the bit: the sum is exact."""
    fed = FederatedAveraging(net(), 4)
    updates = [fed.client_update(client(seed), lr=0.1) for seed in range(4)]
    start = {name: tensor.clone() for name, tensor in fed.model.state_dict().items()}
    first = {name: tensor.clone() for name, tensor in fed.aggregate(updates).items()}
    fed.model.load_state_dict(start)
    second = fed.aggregate(updates[::-1])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_clients_train_copies() -> None:
    """A client update leaves the model alone, and returns how many examples there were in one pass."""
    fed = FederatedAveraging(net(), 1)
    before = {name: tensor.clone() for name, tensor in fed.model.state_dict().items()}
    loader = DataLoader(TensorDataset(torch.randn(50, 4), torch.zeros(50, dtype=torch.long)), batch_size=16)
    state, examples = fed.client_update(loader, epochs=3, lr=0.1)
    assert examples == 50
    assert not torch.equal(state["0.weight"], before["0.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in fed.model.state_dict().items())


def test_clients_without_examples_are_left_out() -> None:
    """An empty loader, an empty batch: they weigh nothing. When there is nobody, that is an error."""
    fed = FederatedAveraging(net(), 3)
    nothing: Data = []
    empty: Data = [(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))]
    assert fed.client_update(nothing)[1] == fed.client_update(empty)[1] == 0
    loss = fed.train_round([client(0), nothing, empty], lr=0.1)
    assert loss > 0
    with pytest.raises(ClientAppError, match="nothing to average"):
        fed.train_round([nothing, nothing, empty])
    with pytest.raises(ClientAppError, match="nothing to average"):
        fed.aggregate([])


def test_a_diverged_client_changes_nothing() -> None:
    """NaN is refused with the client's number; the model stays whole."""
    fed = FederatedAveraging(net(), 2)
    before = fed.model.state_dict()["0.weight"].clone()
    updates = [(filled(fed.model, 1.0), 0), (filled(fed.model, 1.0), 1), (filled(fed.model, float("nan")), 1)]
    with pytest.raises(ClientAppError, match="client 2 holds NaN"):
        fed.aggregate(updates)
    assert torch.equal(fed.model.state_dict()["0.weight"], before)


def test_another_models_update_is_refused() -> None:
    """By the name of the tensor that does not fit."""
    fed = FederatedAveraging(net(), 1)
    with pytest.raises(LayoutError, match="weight"):
        fed.aggregate([(nn.Linear(2, 2).state_dict(), 1)])


def test_weights_that_fit_nothing_are_refused() -> None:
    """Their number, their sign; and the number of clients."""
    fed = FederatedAveraging(net(), 2)
    states = [filled(fed.model, 1.0), filled(fed.model, 2.0)]
    with pytest.raises(ClientAppError, match="as many weights, got 1"):
        fed.aggregate(states, [1.0])
    with pytest.raises(ClientAppError, match="finite and ≥ 0"):
        fed.aggregate(states, [1.0, -1.0])
    with pytest.raises(ClientAppError, match="data of 2 clients, got 1"):
        fed.train_round([client(0)])
    with pytest.raises(ClientAppError, match="num_clients"):
        FederatedAveraging(net(), 0)
    with pytest.raises(ClientAppError, match="epochs"):
        fed.client_update(client(0), epochs=0)
    with pytest.raises(ClientAppError, match="no parameter to train"):
        FederatedAveraging(nn.ReLU(), 1).client_update(client(0))


def test_another_loss_may_be_given() -> None:
    """Regression, for example."""
    model = nn.Linear(1, 1)
    fed = FederatedAveraging(model, 1)
    x = torch.linspace(-1, 1, 32)[:, None]
    for _ in range(20):
        loss = fed.train_round([[(x, 3 * x)]], epochs=5, lr=0.3, criterion=nn.functional.mse_loss)
    assert loss < 1e-3


def test_half_precision_and_tied_parameters_stay_what_they_are() -> None:
    """bfloat16 is averaged in float32 and rounded once; a tied weight stays tied."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).to(torch.bfloat16)
    model[1].weight = model[0].weight
    fed = FederatedAveraging(model, 2)
    fed.aggregate([(filled(model, 1.0), 1), (filled(model, 2.0), 1)], [1, 1])
    assert model[0].weight.dtype == torch.bfloat16
    assert model[0].weight.eq(1.5).all()
    assert model[1].weight is model[0].weight


def test_importing_the_names_does_not_import_torch() -> None:
    """They are for people who have it, and cost nothing to those who have not."""
    code = (
        "import sys; from fedmq.fedcore import FederatedAveraging; "
        "from fedmq.fedcore.privacy import DifferentialPrivacy; "
        "sys.exit('torch' in sys.modules or 'dp_accounting' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
