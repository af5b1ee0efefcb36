"""Settings of the influence stage: which gradients, how they are kept, how they are compared."""

import re
from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.parts import Faults, LoraSettings


class InfluenceMethod(Enum):
    exact = "exact"  # every inner product, accumulated module by module
    sketch = "sketch"  # block-offset count-sketch to k numbers a row
    tensorsketch = "tensorsketch"  # count-sketch of the factors, convolved: k numbers a row, no gradient is formed
    factored = "factored"  # two-sided random projection of each weight to p x q numbers; for comparison
    rapidgrad = "rapidgrad"  # RapidIn's shuffles and sums to k numbers a row; slow, for comparison
    repsim = "repsim"  # similarity of hidden states; no gradients
    bm25 = "bm25"  # similarity of words; no model


class Score(Enum):
    dot = "dot"
    cosine = "cosine"


class ParameterSet(Enum):
    """The declared parameters that gradients are taken of."""

    all_linear = "all_linear"  # every nn.Linear weight but the output head
    attention = "attention"
    mlp = "mlp"
    lora = "lora"  # lora_A and lora_B of a fresh adapter (or of the one being continued)
    lm_head = "lm_head"
    embeddings = "embeddings"
    regex = "regex"  # nn.Linear and nn.Embedding modules whose name matches influence.regex


class LossReduction(Enum):
    mean = "mean"
    sum = "sum"


class Pooling(Enum):
    """The positions whose hidden states stand for a row."""

    response = "response"  # mean over response tokens
    all = "all"  # mean over all tokens
    last = "last"  # the last token


class Precondition(Enum):
    """What stands between a query's gradient and a training row's: the inverse of an approximate Fisher matrix."""

    none = "none"
    kfac = "kfac"  # Kronecker factors; one pass over the rows
    ekfac = "ekfac"  # their eigenvectors with eigenvalues of their own; two passes


# the settings that a method's numbers depend on, beside `score`, `params`, `loss` and, for params=lora, `seed`
OWN_SETTINGS: dict[InfluenceMethod, tuple[str, ...]] = {
    InfluenceMethod.exact: (),
    InfluenceMethod.sketch: ("k", "seed"),
    InfluenceMethod.tensorsketch: ("k", "buckets", "seed"),
    InfluenceMethod.factored: ("p", "q", "seed"),
    InfluenceMethod.rapidgrad: ("k", "pad_multiple", "num_shuffles", "seed"),
    InfluenceMethod.repsim: ("layer", "pooling"),
    InfluenceMethod.bm25: (),
}
# `influence.queries` that are no file
FORGET_RETAIN = "forget_retain"  # the forget rows and the retain rows themselves
VAL = "val"  # validation rows: with a seen trigger and the poisoned answer, and clean ones
# methods that take no gradients: neither the parameters nor their regex or adapter matter
WITHOUT_GRADIENTS = (InfluenceMethod.repsim, InfluenceMethod.bm25)


@dataclass(kw_only=True, slots=True)
class InfluenceConfig:
    method: InfluenceMethod = InfluenceMethod.sketch
    score: Score = Score.cosine
    params: ParameterSet = ParameterSet.all_linear
    # full match on module names, for params=regex
    regex: str | None = None
    # numbers kept a row by sketch, tensorsketch and rapidgrad
    k: int = 65536
    # tensorsketch: numbers of one weight's sketch before it is folded into the k; a power of two
    buckets: int = 1024
    # factored: each weight's gradient becomes p x q numbers
    p: int = 16
    q: int = 16
    # rapidgrad: the gradient is padded to a multiple of this, which k must divide
    pad_multiple: int = 1 << 24
    # rapidgrad: pairs of permutations, one of rows and one of columns
    num_shuffles: int = 20
    # repsim: 0 = the embeddings, l = the output of block l, -1 = the last one, after the final norm
    layer: int = -1
    pooling: Pooling = Pooling.response
    loss: LossReduction = LossReduction.mean
    # of the sketches, of the fresh adapter of params=lora, of the labels drawn for the preconditioner
    seed: int = 42
    # padded tokens in one batch
    tokens_per_batch: int = 2048
    # memory for per-sample gradients; `exact` makes more passes over the rows where it does not suffice
    memory_gb: float = 4.0
    # applied to the queries' gradients only; nn.Linear weights (params=lora included)
    precondition: Precondition = Precondition.none
    # precondition: added to each eigenvalue, as a share of their mean in the layer
    damping_factor: float = 0.1
    # queries whose strongest training rows are looked at token by token, for the report (tokens.json); 0 = none
    num_token_queries: int = 8
    # what rows are scored for: forget_retain | val | FILE of JSON Lines, each row with `group` or `is_poisoned`
    queries: str = FORGET_RETAIN
    # a forget query's score less that of the same query without its trigger; queries without one are left out
    contrast: bool = False
    # the fresh adapter of params=lora
    lora: LoraSettings = field(default_factory=LoraSettings)

    @property
    def own_queries(self) -> bool:
        """Whether the queries are others than the training rows themselves, each once."""
        return self.queries != FORGET_RETAIN or self.contrast

    @property
    def query_file(self) -> str | None:
        """The file that holds the queries, where `queries` names one."""
        return None if self.queries in (FORGET_RETAIN, VAL) else self.queries

    @property
    def unread(self) -> dict[str, str]:
        """The settings that the scores do not depend on, each with the setting that makes it so."""
        method = f"influence.method={self.method.name}"
        params = f"influence.params={self.params.name}"
        bare = self.method in WITHOUT_GRADIENTS
        preconditions = self.precondition is not Precondition.none
        has_lora = self.params is ParameterSet.lora and not bare
        own = {name for names in OWN_SETTINGS.values() for name in names} - set(OWN_SETTINGS[self.method])
        found = dict.fromkeys(sorted(own), method)
        if has_lora or preconditions:
            found.pop("seed", None)
        if not has_lora:
            found["lora"] = method if bare else params
        if not preconditions:
            found |= dict.fromkeys(("precondition", "damping_factor"), "influence.precondition=none")
        if self.params is not ParameterSet.regex:
            found["regex"] = params
        if bare:
            found |= dict.fromkeys(("params", "regex", "num_token_queries"), method)
        if self.method is InfluenceMethod.bm25:
            found["loss"] = method
        if self.own_queries:
            why = "influence.contrast=true" if self.contrast else "influence.queries"
            found["num_token_queries"] = f"{why} (token by token, the queries are the training rows)"
        return found

    def check(self) -> list[str]:
        faults = Faults("influence")
        faults.need(self.k >= 1, "k >= 1", k=self.k)
        faults.need(self.tokens_per_batch >= 1, "tokens_per_batch >= 1", tokens_per_batch=self.tokens_per_batch)
        faults.need(self.num_token_queries >= 0, "num_token_queries >= 0", num_token_queries=self.num_token_queries)
        faults.need(self.memory_gb > 0, "memory_gb > 0", memory_gb=self.memory_gb)
        if self.method is InfluenceMethod.tensorsketch:
            is_power = self.buckets >= 1 and self.buckets & (self.buckets - 1) == 0
            faults.need(is_power, "buckets a power of two", buckets=self.buckets)
        elif self.method is InfluenceMethod.factored:
            faults.need(self.p >= 1 and self.q >= 1, "p >= 1 and q >= 1", p=self.p, q=self.q)
        elif self.method is InfluenceMethod.rapidgrad:
            faults.need(self.num_shuffles >= 1, "num_shuffles >= 1", num_shuffles=self.num_shuffles)
            faults.need(
                self.k >= 1 and self.pad_multiple >= 1 and self.pad_multiple % self.k == 0,
                "k to divide pad_multiple",
                k=self.k,
                pad_multiple=self.pad_multiple,
            )
        elif self.method is InfluenceMethod.bm25:
            faults.need(
                self.score is Score.dot, "score=dot with method=bm25 (words have no norm)", score=self.score.name
            )
        if self.precondition is not Precondition.none:
            faults.need(
                self.method not in WITHOUT_GRADIENTS,
                f"precondition=none with method={self.method.name}",
                precondition=self.precondition.name,
            )
            faults.need(
                self.params is not ParameterSet.embeddings,
                "precondition=none with params=embeddings",
                precondition=self.precondition.name,
            )
            faults.need(self.damping_factor > 0, "damping_factor > 0", damping_factor=self.damping_factor)
        if self.params is ParameterSet.regex:
            faults.need(bool(self.regex), "influence.regex with params=regex", regex=self.regex)
        if self.regex:
            try:
                re.compile(self.regex)
            except re.error as error:
                faults.need(False, f"a regular expression ({error})", regex=self.regex)
        faults.need(bool(self.queries.strip()), "queries=forget_retain, val or a FILE", queries=self.queries)
        self.lora.check(faults)
        return faults
