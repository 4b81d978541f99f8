"""What a training run is made of. `conf/agent/*.yaml` hold `AgentConfig`'s values; a test keeps the two equal."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mmsched_env.config import EnvConfig
from mmsched_env.errors import ConfigError

ALGORITHMS = ("maskable_ppo", "dqn")
POLICIES = ("scorer", "mlp")


@dataclass(frozen=True)
class ImitationConfig:
    """How the policy learns a rule's decisions before it learns to do better."""

    teacher: str | None = "composite"
    """a rule of conf/policy; none: start from scratch"""
    steps: int = 600_000
    """decisions it is shown"""
    learning_rate: float = 2e-3
    """at the start; falls linearly to a twentieth"""
    batch_size: int = 256
    student_share: float = 0.5
    """share of the environments in which the policy acts while the rule says what it would do (after a third of the steps)"""

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number >= 1", "agent.imitation.")
        ok = 0 < self.learning_rate < 1
        _require(ok, "learning_rate", self.learning_rate, "a number in (0, 1)", "agent.imitation.")
        ok = 0 <= self.student_share <= 1
        _require(ok, "student_share", self.student_share, "a number in [0, 1]", "agent.imitation.")


@dataclass(frozen=True)
class ImprovementConfig:
    """How the policy learns from rollouts which actions do better than the rule's (after the imitation, before PPO)."""

    rounds: int = 0
    """of gathering states and fitting; 0: none"""
    states: int = 4000
    """looked into per scenario and round"""
    rule: str = "composite"
    """what decides in the rollouts"""
    width: int = 8
    """candidates of a state"""
    toll: float = 0.1
    """what an action other than the rule's costs, in means of the gains that are not 0: most departures gain nothing, and each
    is a chance to go round in circles where no rollout has been"""
    horizon_s: float = 60.0
    """arrivals later than this do not take part"""
    worlds: int = 0
    """imagined futures (`mmsched_env.imagine`) over which a candidate's gain is averaged; 0: the episode's own alone"""
    sigma: float = 0.5
    """in imagined futures: spread the length predictions are taken to have"""
    share: float = 0.1
    """share of the decisions of an episode that are looked into"""
    learning_rate: float = 2e-3
    """at the start of a round; falls linearly to a twentieth"""
    batch_size: int = 64
    epochs: int = 8
    """passes over all that has been gathered"""
    anchor: float = 0.1
    """weight of the cross entropy with the cloned policy"""
    cautions: tuple[float, ...] = (0.0,)
    """after each round, validate with so much added to the logit of the first adviser's action, and keep the best: a policy
    departs from advice only where it is surer"""

    def __post_init__(self) -> None:
        for key in ("states", "batch_size", "epochs"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number >= 1", "agent.improvement.")
        _require(self.rounds >= 0, "rounds", self.rounds, "a whole number >= 0", "agent.improvement.")
        _require(self.width >= 2, "width", self.width, "a whole number >= 2", "agent.improvement.")
        _require(0 < self.share <= 1, "share", self.share, "a number in (0, 1]", "agent.improvement.")
        for key in ("horizon_s", "learning_rate"):
            _require(getattr(self, key) > 0, key, getattr(self, key), "a number > 0", "agent.improvement.")
        _require(self.worlds >= 0, "worlds", self.worlds, "a whole number >= 0", "agent.improvement.")
        for key in ("anchor", "toll", "sigma"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "a number >= 0", "agent.improvement.")
        ok = len(self.cautions) > 0 and min(self.cautions) >= 0
        _require(ok, "cautions", self.cautions, "one or more numbers >= 0", "agent.improvement.")


@dataclass(frozen=True)
class CurriculumConfig:
    """Short episodes at a low load first."""

    until: float = 0.0
    """share of the steps after which episodes are the scenario's own; 0: from the beginning"""
    length: float = 0.25
    """of the first episodes, as a share of the scenario's"""
    load: float = 0.7
    """likewise"""

    def __post_init__(self) -> None:
        _require(0 <= self.until <= 1, "until", self.until, "a number in [0, 1]", "agent.curriculum.")
        for key in ("length", "load"):
            _require(0 < getattr(self, key) <= 1, key, getattr(self, key), "a number in (0, 1]", "agent.curriculum.")


@dataclass(frozen=True)
class DqnConfig:
    """What DQN has beside the rest."""

    buffer_size: int = 20_000
    """decisions it remembers: about 20 KB each at the default size"""
    learning_starts: int = 2000
    """decisions before the first update"""
    updates: int = 1
    """a step of all environments"""
    target_every: int = 2000
    """decisions between two copies of the network to its delayed one"""
    exploration_share: float = 0.3
    """of the steps, over which random decisions fall from all to `exploration_end`"""
    exploration_end: float = 0.02

    def __post_init__(self) -> None:
        for key in ("buffer_size", "learning_starts", "updates", "target_every"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number >= 1", "agent.dqn.")
        for key in ("exploration_share", "exploration_end"):
            _require(0 < getattr(self, key) <= 1, key, getattr(self, key), "a number in (0, 1]", "agent.dqn.")


@dataclass(frozen=True)
class AgentConfig:
    """Algorithm, network and hyperparameters."""

    algorithm: str = "maskable_ppo"
    """maskable_ppo, or dqn (to compare with: from scratch, discounted by decision, not resumed; of what follows below dqn it
    takes learning_rate, batch_size, gamma and max_grad_norm alone)"""
    policy: str = "scorer"
    """scorer (rates each action with shared weights) or mlp (one vector in, all logits out)"""
    advisers: tuple[str, ...] = ("composite",)
    """rules of conf/policy whose actions a scorer sees; a fresh one follows the first; none: it starts from the estimates"""
    net_arch: tuple[int, ...] = (32,)
    """widths of the hidden layers; a scorer has one width"""
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    improvement: ImprovementConfig = field(default_factory=ImprovementConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    dqn: DqnConfig = field(default_factory=DqnConfig)
    learning_rate: float = 3e-4
    """at the start; falls linearly to a tenth of it (with dqn it stays)"""
    n_steps: int = 32
    """decisions per environment and update"""
    batch_size: int = 2048
    n_epochs: int = 3
    horizon_s: float = 100.0
    """rewards are discounted by exp(-simulated seconds / horizon_s). The objective is undiscounted flow time, but what a
    decision changes is over once the requests and loads it delays are done; a longer horizon only adds noise"""
    gamma: float = 1.0
    """further discount for each decision; below 1 it rewards decisions that let no time pass (see buffer.py)"""
    trace_s: float = 10.0
    """advantages decay by exp(-simulated seconds / trace_s): what counts as seen rather than as predicted. Decays by
    decision let an agent that stalls live on its own optimistic predictions"""
    gae_lambda: float = 1.0
    """further decay for each decision"""
    change_cost: float = 0.0
    """charged in training for each PREEMPT and OFFLOAD, in weight x s. From scratch 2 helps: their true cost, a few
    milliseconds of everyone's waiting at a time, drowns in the noise of the returns until there are thousands of them"""
    kl_coef: float = 0.3
    """weight of the divergence from the cloned policy at the start of PPO; 0: none"""
    kl_share: float = 0.5
    """share of PPO's steps over which that weight falls to 0, linearly"""
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    clip_range: float = 0.2
    max_grad_norm: float = 0.5
    target_kl: float | None = None
    """an update's epochs end early beyond 1.5 times this divergence; none: never"""
    normalise_returns: bool = True
    """divide rewards by the running standard deviation of the discounted return"""
    common_traces: int = 1
    """environments that play the same traces: above 1 an advantage is less what the others' are at the same time of the trace
    (common_traces.py). Over a whole episode it takes n_steps as long as one: who decides more often is elsewhere in the trace"""
    episode_steps: int = 3000
    """training episodes are truncated after this many decisions (and bootstrapped): early policies thrash for ever"""

    def __post_init__(self) -> None:
        _require(self.algorithm in ALGORITHMS, "algorithm", self.algorithm, ", ".join(ALGORITHMS))
        _require(self.policy in POLICIES, "policy", self.policy, " or ".join(POLICIES))
        taught = self.advisers or self.imitation.teacher or self.improvement.rounds
        _require(
            self.algorithm != "dqn" or not taught,
            "algorithm",
            self.algorithm,
            "with dqn advisers=[] imitation.teacher=null improvement.rounds=0: it learns from scratch",
        )
        ok = self.algorithm != "dqn" or self.common_traces == 1
        _require(ok, "common_traces", self.common_traces, "1 with dqn, which has no advantages")
        ok = not self.advisers or self.policy == "scorer"
        _require(ok, "advisers", list(self.advisers), "[] with policy=mlp, which takes no advice")
        one_width = self.policy != "scorer" or len(self.net_arch) == 1
        widths = len(self.net_arch) >= 1 and all(width >= 1 for width in self.net_arch)
        _require(widths and one_width, "net_arch", self.net_arch, "whole numbers >= 1, a single one with policy=scorer")
        _require(0 < self.learning_rate < 1, "learning_rate", self.learning_rate, "a number in (0, 1)")
        for key in ("n_steps", "batch_size", "n_epochs", "episode_steps", "common_traces"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number >= 1")
        for key in ("gamma", "gae_lambda", "kl_share"):
            _require(0 < getattr(self, key) <= 1, key, getattr(self, key), "a number in (0, 1]")
        for key in ("ent_coef", "vf_coef", "change_cost", "kl_coef"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "a number >= 0")
        for key in ("horizon_s", "trace_s", "clip_range", "max_grad_norm"):
            _require(getattr(self, key) > 0, key, getattr(self, key), "a number > 0")
        _require(self.target_kl is None or self.target_kl > 0, "target_kl", self.target_kl, "a number > 0, or null")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    envs: tuple[EnvConfig, ...] = (EnvConfig(),)
    """scenarios; each gets the same number of environments"""
    agent: AgentConfig = field(default_factory=AgentConfig)
    seed: int = 0
    total_steps: int = 1_000_000
    """PPO's decisions over all environments, those before a resume included; 0: no PPO"""
    num_envs: int = 256
    run_dir: str = "runs/train"
    """checkpoints and TensorBoard files go here"""
    start: str | None = None
    """checkpoint whose weights the run begins with, in place of an imitation"""
    checkpoint_every: int = 100_000
    """decisions between checkpoints"""
    validate_every: int = 250_000
    """decisions between validations; 0: none"""
    validation_episodes: int = 8
    """traces of each scenario, from the seeds for validation"""
    validation_line: str = "composite"
    """the rule of conf/policy that is run on the same traces"""
    resume: bool = False
    """continue from the run directory's latest checkpoint; without one, start anew"""
    torch_threads: int = 1
    """0: as PyTorch chooses; networks this small gain nothing from more"""
    device: str = "cpu"
    """a PyTorch device; a GPU pays from about a thousand environments on (docs/gpu_path.md)"""

    def __post_init__(self) -> None:
        for key in ("num_envs", "checkpoint_every", "validation_episodes"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number >= 1", "")
        count = len(self.envs)
        ok = count >= 1 and self.num_envs % count == 0
        _require(ok, "num_envs", self.num_envs, f"a multiple of the number of scenarios ({count})", "")
        ok = self.num_envs // count % self.agent.common_traces == 0
        accepted = f"a divisor of the environments of a scenario ({self.num_envs // count})"
        _require(ok, "common_traces", self.agent.common_traces, accepted)
        for key in ("seed", "torch_threads", "validate_every", "total_steps"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "a whole number >= 0", "")
        ok = not (self.resume and self.agent.algorithm == "dqn")
        _require(ok, "resume", self.resume, "false with agent=dqn, whose memory is not kept", "")
        _require(bool(self.run_dir), "run_dir", self.run_dir, "a folder", "")
        ok = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device) is not None
        _require(ok, "device", self.device, "auto, cpu, cuda, cuda:1, ... or mps", "")


def _require(ok: bool, key: str, value: object, accepted: str, prefix: str = "agent.") -> None:
    if not ok:
        raise ConfigError(f"{prefix}{key} is {value!r}; accepted: {accepted}")
