import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowimg.build.flow import PATHS
from flowimg.build.sampler import SOLVERS, build_solver, build_times
from flowimg.fields.guidance import Guided
from flowimg.flow.condition import Condition
from flowimg.flow.solvers import AB2, EULER, Solver, dopri5, integrate
from flowimg.flow.times import uniform_grid
from flowimg.settings.verbs import Sample

A = torch.tensor([[-0.5, 2.0, 0.0], [-2.0, -0.5, 0.3], [0.1, 0.0, 0.8]], dtype=torch.float64)
X = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 1.0]], dtype=torch.float64)
STEPS = [32, 64, 128, 256]
EXACT = [name for name, solver in SOLVERS.items() if not solver.stochastic]
"""Solvers that draw no noise; the others are in test_stochastic."""
STEPPING = [name for name in EXACT if not SOLVERS[name].adaptive]
"""Solvers that go through the times as they are given."""


@pytest.fixture(params=EXACT)
def solver(request):
    return SOLVERS[request.param]


@pytest.fixture(params=STEPPING)
def stepping(request):
    return SOLVERS[request.param]


def fine(solver):
    """Times close enough for every solver; an adaptive one cuts them further by itself."""
    return uniform_grid(2 if solver.adaptive else 400)


def turning(x, t, cond=None):
    # dx/dt = A x, whose flow to time t is matrix_exp(t A)
    return x @ A.T


def quickening(x, t, cond=None):
    # dx/dt = (1 + 2t) A x, whose flow to time t is matrix_exp((t + t^2) A): a wrong time costs an order
    return (1 + 2 * t[:, None]) * (x @ A.T)


FLOWS = {turning: lambda t: t, quickening: lambda t: t + t**2}


def exact(velocity, t):
    return X @ torch.linalg.matrix_exp(FLOWS[velocity](t) * A).T


def slope(errors):
    return np.polyfit(np.log(1 / np.array(STEPS)), np.log(errors), 1)[0]


@pytest.mark.parametrize("velocity", FLOWS)
def test_error_falls_with_the_declared_order(stepping, velocity):
    errors = [(integrate(velocity, X, uniform_grid(n), stepping).x - exact(velocity, 1)).norm().item() for n in STEPS]
    assert min(errors) > 1e-12  # above rounding, or the slope would mean nothing
    assert slope(errors) == pytest.approx(stepping.order, abs=0.1)


def test_orders_are_those_of_the_literature():
    orders = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 2, "dopri5": 5}
    assert {name: SOLVERS[name].order for name in orders} == orders
    assert [name for name in orders if SOLVERS[name].adaptive] == ["dopri5"]


TOLERANCES = [1e-3, 1e-5, 1e-7, 1e-9]


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("velocity", FLOWS)
def test_error_of_an_adaptive_solver_falls_with_its_tolerance(velocity, back):
    errors, calls = [], []
    for tolerance in TOLERANCES:
        start, end = (exact(velocity, 1), X) if back else (X, exact(velocity, 1))
        times = uniform_grid(1).flip(0) if back else uniform_grid(1)
        flow = integrate(velocity, start, times, dopri5(tolerance))
        errors.append((flow.x - end).abs().max().item())
        calls.append(flow.nfe)
    assert all(error < 10 * tolerance * 3 for error, tolerance in zip(errors, TOLERANCES, strict=True)), errors
    assert errors == sorted(errors, reverse=True) and calls == sorted(calls)
    assert calls[-1] > 2 * calls[0]
    # a method of order 5: the error of a step is O(h^6), so a tolerance a million times smaller costs ten times as much
    assert calls[-1] < 20 * calls[0]


def test_an_adaptive_solver_takes_its_steps_where_the_flow_is_hard():
    seen = []

    def bend(x, t, cond):  # x = tanh(50 (t - 0.7)), all of it near 0.7
        seen.append(t[0].item())
        return 50 / torch.cosh(50 * (t[:, None] - 0.7)) ** 2

    x_0 = torch.tanh(torch.tensor([[-35.0]], dtype=torch.float64))
    flow = integrate(bend, x_0, torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64), dopri5(1e-6))
    assert flow.x.item() == pytest.approx(np.tanh(15), abs=1e-5) and flow.nfe == len(seen)
    near = sum(abs(t - 0.7) < 0.1 for t in seen)
    assert near > len(seen) / 2


@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.0], [0.0, 0.3, 1.0], [0.9, 0.2]])
def test_no_solver_asks_for_a_velocity_beyond_its_times(solver, times):
    seen = []

    def velocity(x, t, cond):
        seen.append(t[0].item())
        return 1e-4 * x * (1 + t[:, None])  # slow, so that an adaptive solver dares long steps

    flow = integrate(velocity, X, torch.tensor(times, dtype=torch.float64), solver)
    assert min(times) <= min(seen) and max(seen) <= max(times)
    way = (times[-1] + times[-1] ** 2 / 2) - (times[0] + times[0] ** 2 / 2)
    torch.testing.assert_close(flow.x, X * torch.tensor(1e-4 * way).exp(), atol=2e-4, rtol=0)


def test_settings_reach_the_adaptive_solver_which_cuts_the_way_itself():
    errors = []
    for tolerance in TOLERANCES[:3]:
        how = Sample(run="r", solver="dopri5", tolerance=tolerance, num_steps=7, times="edm", shift=3.0)
        assert build_times(how).tolist() == [0, 1]
        errors.append((integrate(turning, X, build_times(how), build_solver(how)).x - exact(turning, 1)).norm().item())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    how = Sample(run="r", solver="heun", num_steps=3)
    assert build_solver(how) is SOLVERS["heun"] and build_times(how).tolist() == uniform_grid(3).tolist()


def test_there_and_back_again_returns_to_the_solvers_order(stepping):
    errors = []
    for n in STEPS:
        there = integrate(quickening, X, uniform_grid(n), stepping).x
        back = integrate(quickening, there, uniform_grid(n).flip(0), stepping).x
        errors.append((back - X).norm().item())
    # errors of even order cancel in part on the way back, so the slope may be steeper
    clean = [e for e in errors if e > 1e-12]
    assert len(clean) >= 2
    assert np.polyfit(np.log(1 / np.array(STEPS[: len(clean)])), np.log(clean), 1)[0] > stepping.order - 0.1


@pytest.mark.parametrize("s", [0.2, 1.0, 2.0])
@pytest.mark.parametrize("kind", PATHS)
def test_gaussian_data_are_reached_from_noise_and_left_again(solver, kind, s):
    # data N(mu, s^2): the flow is x_t = alpha mu + sqrt(alpha^2 s^2 + sigma^2) x_0, which ends at mu + s x_0
    path, mu = PATHS[kind](None), 1.5

    def velocity(x, t, cond=None):
        t = t[:, None]
        alpha, sigma = path.alpha(t), path.sigma(t)
        mixed = path.alpha_prime(t) * alpha * s**2 + path.sigma_prime(t) * sigma
        return path.alpha_prime(t) * mu + mixed / (alpha**2 * s**2 + sigma**2) * (x - alpha * mu)

    x_0 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    tolerance = 0.03 if solver.order == 1 else 1e-3
    data = integrate(velocity, x_0, fine(solver), solver).x
    torch.testing.assert_close(data, mu + s * x_0, atol=tolerance, rtol=0)
    noise = integrate(velocity, mu + s * x_0, fine(solver).flip(0), solver).x
    torch.testing.assert_close(noise, x_0, atol=tolerance / s, rtol=0)


def test_gaussian_flow_in_the_words_of_the_design(solver):
    mu, s = -0.7, 0.4

    def velocity(x, t, cond=None):
        t = t[:, None]
        return mu + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2) * (x - t * mu)

    x_0 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    flow = integrate(velocity, x_0, fine(solver), solver, trajectory=True)
    torch.testing.assert_close(flow.x, mu + s * x_0, atol=0.02 if solver.order == 1 else 1e-4, rtol=0)
    # half way, the mean is mu / 2 and the deviation sqrt((1 + s^2) / 4)
    half = mu / 2 + ((1 + s**2) / 4) ** 0.5 * x_0
    torch.testing.assert_close(
        flow.trajectory[len(flow.trajectory) // 2], half, atol=0.02 if solver.order == 1 else 1e-4, rtol=0
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(gaps=st.lists(st.floats(0.01, 1), min_size=1, max_size=12), back=st.booleans())
def test_powers_of_time_below_the_order_are_integrated_exactly_over_any_grid(gaps, back):
    times = torch.tensor([0.3, *gaps], dtype=torch.float64).cumsum(0)
    times = times.flip(0) if back else times
    for solver in (SOLVERS[name] for name in STEPPING):
        p = solver.order
        # dx/dt = p t^(p - 1), so x goes from t_0^p to t_N^p
        slope = lambda x, t, cond, p=p: p * t[:, None] ** (p - 1)  # noqa: E731
        flow = integrate(slope, times[:1, None] ** p, times, solver, trajectory=True)
        found, wanted = flow.trajectory[:, 0], times[:, None] ** p
        if solver is AB2:  # its first step is Euler's
            found = found - found[1] + wanted[1]
            found[0] = wanted[0]
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_uneven_steps_lead_where_even_steps_lead(stepping):
    g = torch.Generator().manual_seed(0)
    gaps = 0.5 + torch.rand(400, generator=g, dtype=torch.float64)
    times = torch.cat([torch.zeros(1, dtype=torch.float64), gaps.cumsum(0) / gaps.sum()])
    end = integrate(quickening, X, times, stepping).x
    error, even = (end - exact(quickening, 1)).norm(), integrate(quickening, X, uniform_grid(400), stepping).x
    # the third power of an uneven gap is larger on average; nothing else may cost more
    assert error < 2 * (even - exact(quickening, 1)).norm() + 1e-12


def test_solver_starts_and_ends_at_the_times_given(solver):
    end = integrate(turning, X, 0.3 + 0.5 * fine(solver), solver).x
    expected = X @ torch.linalg.matrix_exp(0.5 * A).T
    torch.testing.assert_close(end, expected, atol=0.01 if solver.order == 1 else 1e-5, rtol=0)


def test_evaluations_are_counted_as_they_happen(solver):
    calls = 0

    def velocity(x, t, cond=None):
        nonlocal calls
        calls += 1
        return x

    assert integrate(velocity, X, uniform_grid(7), solver).nfe == calls > 0


@pytest.mark.parametrize(("name", "each"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4), ("ab2", 1)])
def test_evaluations_of_a_step(name, each):
    assert integrate(turning, X, uniform_grid(7), SOLVERS[name]).nfe == 7 * each


def test_a_multistep_solver_goes_along_the_line_through_two_slopes():
    """Two steps of other lengths: the second is the integral of the line that numpy's polyfit finds."""
    times = torch.tensor([0.1, 0.3, 0.8], dtype=torch.float64)
    flow = integrate(quickening, X, times, AB2, trajectory=True)
    first, second = (quickening(flow.trajectory[n], times[n : n + 1]) for n in (0, 1))
    for row, column in np.ndindex(*X.shape):
        line = np.poly1d(np.polyfit([0.1, 0.3], [first[row, column], second[row, column]], 1)).integ()
        gone = line(0.8) - line(0.3)
        assert (flow.x - flow.trajectory[1])[row, column].item() == pytest.approx(gone, rel=1e-10)
    torch.testing.assert_close(flow.trajectory[1], X + 0.2 * first)


def test_flows_share_no_memory():
    """A second flow starts afresh, not from the last slope of the first."""
    first, second = (integrate(turning, X, uniform_grid(5), AB2).x for _ in range(2))
    assert torch.equal(first, second)


def test_guidance_doubles_the_evaluations(solver):
    seen = 0

    def field(x, t, cond):
        nonlocal seen
        seen += len(x)
        return x

    labels = Condition(torch.zeros(2, dtype=torch.long))
    nfe = integrate(Guided(field, 2.0), X, uniform_grid(5), solver, labels).nfe
    assert solver.adaptive or nfe == 2 * integrate(turning, X, uniform_grid(5), solver).nfe
    assert nfe % 2 == 0
    assert nfe == seen / len(X)  # evaluations a sample


def test_trajectory_holds_every_state(solver):
    grid = uniform_grid(6)
    flow = integrate(quickening, X, grid, solver, trajectory=True)
    assert flow.trajectory.shape == (7, *X.shape)
    assert torch.equal(flow.trajectory[0], X) and torch.equal(flow.trajectory[-1], flow.x)
    for k in range(1, 7):
        assert torch.equal(flow.trajectory[k], integrate(quickening, X, grid[: k + 1], solver).x)
    assert integrate(quickening, X, grid, solver).trajectory is None


@pytest.mark.parametrize(
    "times",
    [
        [0.0, 0.5, 0.5, 1.0],
        [0.0, 0.6, 0.5, 1.0],
        [1.0, 0.4, 0.5, 0.0],
        [0.0, float("nan"), 1.0],
        [0.0],
        [],
        0.5,
        [[0.0, 1.0]],
        [[0.0], [1.0]],
    ],
)
def test_times_that_do_not_run_strictly_one_way_are_refused(times):
    with pytest.raises(ValueError, match="strictly rise or strictly fall"):
        integrate(turning, X, torch.tensor(times, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_and_shape_of_the_state_are_kept(solver, dtype):
    x = torch.ones(3, 2, 4, 4, dtype=dtype)
    cond = torch.tensor([1, 2, 3])

    def velocity(x, t, given):
        assert x.shape == (3, 2, 4, 4) and x.dtype == dtype
        assert t.shape == (3,) and t.dtype == dtype and given is cond
        return x

    flow = integrate(velocity, x, uniform_grid(4), solver, cond, trajectory=True)
    assert flow.x.dtype == flow.trajectory.dtype == dtype and flow.x.shape == x.shape
    assert torch.equal(x, torch.ones_like(x))


def test_euler_visits_the_left_end_of_every_step():
    seen = []
    integrate(lambda x, t, cond: seen.append(t[0].item()) or x, X, uniform_grid(4), EULER)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_errors_of_the_velocity_surface_unchanged(solver):
    def velocity(x, t, cond):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match=r"^inside$"):
        integrate(velocity, X, uniform_grid(2), solver)


# --- times that turn, hooks, noise -----------------------------------------------------------------------------------

ROUND = torch.tensor([0.0, 0.5, 0.2, 0.8, 0.3, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("name", [name for name in EXACT if not SOLVERS[name].multistep])
def test_times_may_turn_back_where_nothing_of_the_step_before_is_used(name):
    solver = SOLVERS[name]
    flow = integrate(quickening, X, ROUND, solver, trajectory=True, turns=True)
    x = X
    for t, s, state in zip(ROUND, ROUND[1:], flow.trajectory[1:], strict=False):
        x = integrate(quickening, x, torch.stack([t, s]), solver).x
        assert torch.equal(state, x)
    with pytest.raises(ValueError, match="strictly rise or strictly fall"):
        integrate(quickening, X, ROUND, solver)
    finer = torch.cat([torch.linspace(t, s, 200)[:-1] for t, s in zip(ROUND, ROUND[1:], strict=False)] + [ROUND[-1:]])
    end = integrate(quickening, X, ROUND if solver.adaptive else finer.double(), solver, turns=True).x
    torch.testing.assert_close(end, exact(quickening, 1), atol=0.1 if solver.order == 1 else 1e-3, rtol=0)


def test_a_multistep_solver_is_refused_times_that_turn():
    assert [name for name, solver in SOLVERS.items() if solver.multistep] == ["ab2"]
    with pytest.raises(ValueError, match="strictly rise or strictly fall"):
        integrate(quickening, X, ROUND, AB2, turns=True)
    one_way = uniform_grid(5)
    assert torch.equal(integrate(turning, X, one_way, AB2, turns=True).x, integrate(turning, X, one_way, AB2).x)


@pytest.mark.parametrize("times", [[0.0, 0.5, 0.5, 1.0], [0.0, float("nan"), 0.5], [0.0], []])
def test_times_that_stand_still_are_no_turn(times):
    with pytest.raises(ValueError, match="strictly rise or strictly fall"):
        integrate(turning, X, torch.tensor(times, dtype=torch.float64), EULER, turns=True)


def shaken(slope, x, t, s):
    """Euler and Maruyama's step: along the slope, and a random step of the variance that has gone by."""
    return x + (s - t) * slope(x, t) + abs(s - t) ** 0.5 * slope.noise(x)


SHAKEN = Solver(shaken, order=1, stochastic=True)


def test_a_stochastic_step_gets_its_noise_by_the_number_of_the_step():
    numbers = []

    def noise(number, x):
        numbers.append(number)
        return torch.full_like(x, 10.0**number)

    flow = integrate(lambda x, t, cond: torch.ones_like(x), X, uniform_grid(4), SHAKEN, noise=noise)
    assert numbers == [0, 1, 2, 3] and flow.nfe == 4
    torch.testing.assert_close(flow.x, X + 1 + 0.5 * 1111)


def test_a_stochastic_step_without_noise_is_refused():
    with pytest.raises(ValueError, match="a stochastic solver needs noise"):
        integrate(turning, X, uniform_grid(4), SHAKEN)


@pytest.mark.parametrize("kind", PATHS)
def test_a_step_sees_the_path_that_the_velocity_belongs_to(kind):
    path, seen = PATHS[kind](None), []
    watch = Solver(lambda slope, x, t, s: seen.append(slope.path) or x, order=1)
    integrate(turning, X, uniform_grid(2), watch, path=path)
    assert seen == [path, path]


def test_a_hook_replaces_the_state_after_every_step(solver):
    seen = []

    def hook(x, t):
        seen.append(t)
        return torch.full_like(x, t)

    flow = integrate(turning, X, uniform_grid(4), solver, trajectory=True, hook=hook)
    assert seen == [0.25, 0.5, 0.75, 1.0]
    assert torch.equal(flow.x, torch.ones_like(X)) and torch.equal(flow.trajectory[2], torch.full_like(X, 0.5))
    # and the next step goes on from there
    to_half = integrate(turning, torch.full_like(X, 0.25), torch.tensor([0.25, 0.5], dtype=torch.float64), solver).x
    last = integrate(turning, X, uniform_grid(4), solver, hook=lambda x, t: torch.full_like(x, t) if t == 0.25 else x)
    rest = integrate(turning, to_half, uniform_grid(4)[2:], solver).x
    if not solver.multistep:
        torch.testing.assert_close(last.x, rest, atol=1e-4, rtol=0)
