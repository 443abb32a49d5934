"""Label refinement of CRCL: golden trajectories, pieces, the store and the temperature advice."""

import numpy as np
import pytest
import torch

from clip_itm.methods.crcl.labels import (
    LabelStore,
    Phase,
    expected_probability,
    fitting_temperature,
    label_filter,
    phase_of,
    piece_lengths,
    refine,
)
from clip_itm.methods.crcl.loss import crcl_loss, match_both_ways, matching_probability
from clip_itm.training.schedule import step_lambda


@pytest.mark.parametrize("trajectory", ["main", "warm1", "nofilter", "nomomentum"])
def test_golden_trajectories(golden, trajectory):
    """Store, labels, p and loss after every step, over pieces, with smaller last batches.

    The published ablations are settings: without filter, threshold 0; without momentum (the label is p from the first
    step on), momentum 0, threshold 0 and no frozen epochs.
    """
    prefix = f"{trajectory}_"
    arrays = {
        name.removeprefix(prefix): value
        for name, value in golden("crcl_label_refine").items()
        if name.startswith(prefix)
    }
    schedules, frozen_epochs = arrays["schedule"].tolist(), int(arrays["warm_epoch"])
    momentum = float(arrays["alpha"])
    threshold = 0.1 if trajectory in ("main", "warm1") else 0
    if trajectory == "nomomentum":
        momentum, frozen_epochs, schedules = 0, 0, piece_lengths(schedules, frozen_epochs)
    starts = np.cumsum([0, *piece_lengths(schedules, frozen_epochs)])
    store = LabelStore(arrays["store_after"].shape[1])
    for step, size in enumerate(arrays["batch_size"]):
        ids = torch.tensor(arrays["ids"][step, :size])
        similarity = torch.tensor(arrays["S"][step, :size, :size], dtype=torch.float64)
        piece, epoch = int(arrays["piece"][step]), int(arrays["epoch"][step])
        phase = phase_of(int(starts[piece]) + epoch, schedules, frozen_epochs)
        assert (phase.piece, phase.epoch_in_piece) == (piece, epoch)
        rows, columns, targets = match_both_ways(similarity, similarity.T, float(arrays["tau"]))
        p = matching_probability(rows, columns)
        used, written = refine(store.read(ids), p, phase, momentum, threshold)
        store.write(ids, written, p)
        tolerance = {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(p, arrays["p_pair"][step, :size], **tolerance)
        np.testing.assert_allclose(used, arrays["y_used"][step, :size], **tolerance)
        np.testing.assert_allclose(store.labels, arrays["store_after"][step], **tolerance)
        np.testing.assert_allclose(store.probabilities[ids], p, rtol=1e-6)
        loss, *_ = crcl_loss(rows, columns, used, targets, 5.0)
        np.testing.assert_allclose(loss, arrays["loss"][step], **tolerance)


@pytest.mark.parametrize("case", "abc")
def test_golden_schedules(golden, case):
    arrays = {name[2:]: value for name, value in golden("crcl_schedule").items() if name[0] == case}
    schedules, frozen_epochs = arrays["schedule"].tolist(), int(arrays["warm_epoch"])
    assert sum(piece_lengths(schedules, frozen_epochs)) == len(arrays["table"])
    for epoch, (piece, epoch_in_piece, rate, frozen, replaces) in enumerate(arrays["table"]):
        phase = phase_of(epoch, schedules, frozen_epochs)
        assert phase == (piece, epoch_in_piece, frozen, replaces)
        multiplier = step_lambda(phase.epoch_in_piece, int(arrays["lr_update"]))
        np.testing.assert_allclose(float(arrays["base_lr"]) * multiplier, rate, rtol=1e-12)
    with pytest.raises(ValueError, match=f"have {len(arrays['table'])} epochs in all"):
        phase_of(len(arrays["table"]), schedules, frozen_epochs)


def test_no_frozen_epochs_no_replacement():
    assert phase_of(0, [2, 1], 0) == Phase(piece=0, epoch_in_piece=0, frozen=False, replaces=False)
    assert phase_of(2, [2, 1], 0) == Phase(piece=1, epoch_in_piece=0, frozen=False, replaces=False)


def test_full_momentum_keeps_the_label_at_1():
    generator = torch.Generator().manual_seed(0)
    store, ids = LabelStore(50), torch.arange(50)
    for epoch in range(5):
        p = torch.rand(50, generator=generator)
        used, written = refine(store.read(ids), p, phase_of(epoch, [5], 0), momentum=1, threshold=0)
        store.write(ids, written, p)
        assert (used == 1).all()
    assert (store.labels == 1).all()


def test_filter_keeps_the_threshold():
    values = torch.tensor([0.0, 0.05, 0.1, 0.2, 1.0])
    torch.testing.assert_close(label_filter(values, 0.1), torch.tensor([0.0, 0.0, 0.1, 0.2, 1.0]), rtol=0, atol=0)
    assert label_filter(torch.tensor([torch.nan]), 0.1).isnan()  # a diverged run must show


@pytest.mark.parametrize(
    ("store_filtered", "expected_used", "expected_stored"),
    [(True, [0, 0, 0], [0, 0, 0]), (False, [0, 0, 0.1368], [0.096, 0.096, 0.1368])],
)
def test_uncut_accumulator(store_filtered, expected_used, expected_stored):
    """A label that is cut to 0 and then left alone returns with p = 0.3 only where the store kept its history."""
    updating, frozen = Phase(1, 2, False, False), Phase(2, 0, True, False)
    label, used_labels, stored_labels = torch.tensor([0.12]), [], []
    for phase, p in ((updating, 0.0), (frozen, 0.9), (updating, 0.3)):
        used, label = refine(label, torch.tensor([p]), phase, 0.8, 0.1, store_filtered)
        used_labels.append(used.item())
        stored_labels.append(label.item())
    assert used_labels == pytest.approx(expected_used)
    assert stored_labels == pytest.approx(expected_stored)


def test_replacement_stores_the_raw_probability():
    used, written = refine(torch.ones(2), torch.tensor([0.03, 0.7]), phase_of(1, [1], 2), 0.8, 0.1)
    assert used.tolist() == [1, 1]
    assert written.tolist() == pytest.approx([0.03, 0.7])


def test_store():
    store = LabelStore(6)
    assert store.read(torch.tensor([5, 0])).tolist() == [1, 1]
    assert store.probabilities.isnan().all()
    ids = torch.tensor([4, 1, 3])
    store.write(ids, torch.tensor([0.5, 0, 0.25], dtype=torch.float64), torch.tensor([0.6, 0.1, 0.2]))
    assert store.labels.dtype == store.probabilities.dtype == torch.float32
    assert store.labels.tolist() == [1, 0, 1, 0.25, 0.5, 1]
    assert store.probabilities.isnan().tolist() == [True, False, True, False, False, True]
    assert store.probabilities[ids].tolist() == pytest.approx([0.6, 0.1, 0.2])
    assert store.share_zero == pytest.approx(1 / 6)
    assert store.histogram(4) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_stored_state():
    store = LabelStore(3, torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64))
    store.write(torch.tensor([1]), torch.tensor([0.3]), torch.tensor([0.9]))
    state = store.state_dict()
    store.write(torch.tensor([0]), torch.tensor([0.0]), torch.tensor([0.0]))
    again = LabelStore(3)
    again.load_state_dict(state)
    assert again.labels.tolist() == pytest.approx([0.2, 0.3, 0.6])
    assert again.probabilities.isnan().tolist() == [True, False, True]
    again.write(torch.tensor([2]), torch.tensor([0.0]), torch.tensor([0.0]))
    assert state["labels"].tolist() == pytest.approx([0.2, 0.3, 0.6])
    with pytest.raises(ValueError, match=r"belong to 3 training pairs, this run has 4"):
        LabelStore(4).load_state_dict(state)


def test_histogram():
    store = LabelStore(5, torch.tensor([0.0, 0.09, 0.1, 0.95, 1.0]))
    assert store.histogram() == pytest.approx([0.4, 0.2, 0, 0, 0, 0, 0, 0, 0, 0.4])


def test_expected_probability():
    """The table of docs/papers/crcl.md 9."""
    batches = (64, 128, 512, 1024, 4096)
    table = {
        (0.15, 0.05): (0.242, 0.137, 0.038, 0.019, 0.005),
        (0.15, 0.02): (0.966, 0.934, 0.780, 0.639, 0.306),
        (0.15, 0.01): (1.00, 1.00, 1.00, 1.00, 0.999),
        (0.30, 0.05): (0.865, 0.761, 0.441, 0.283, 0.090),
    }
    for (gap, temperature), values in table.items():
        for candidates, value in zip(batches, values, strict=True):
            assert expected_probability(gap, temperature, candidates) == pytest.approx(value, abs=6e-4)


def test_fitting_temperature():
    for gap, candidates, probability in ((0.15, 512, 0.5), (0.3, 64, 0.9), (0.02, 4096, 0.1)):
        temperature = fitting_temperature(gap, candidates, probability)
        assert expected_probability(gap, temperature, candidates) == pytest.approx(probability)
    assert fitting_temperature(0.15, 512) == pytest.approx(0.15 / np.log(511))
    with pytest.raises(ValueError, match="no temperature"):
        fitting_temperature(-0.1, 128)
    with pytest.raises(ValueError, match="no temperature"):
        fitting_temperature(0.1, 2)
