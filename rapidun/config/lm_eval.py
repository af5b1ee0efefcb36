"""Settings of the benchmarks of lm-evaluation-harness (evaluation.lm_eval): what a model can do besides."""

from dataclasses import dataclass, field

from rapidun.config.parts import Faults


@dataclass(kw_only=True, slots=True)
class LmEvalConfig:
    # names of tasks, each of a YAML file below include_path; [] = none
    tasks: list[str] = field(default_factory=list)
    # folder of task files in lm-eval's format, with the rows they name beside them; nothing in it is executed
    include_path: str | None = None
    # rows of each task, its first ones; null = all
    limit: int | None = None
    # answered examples in front of each question; null = what the task file says
    num_fewshot: int | None = None
    batch_size: int = 8

    def check(self, faults: Faults) -> None:
        faults.need(
            len(set(self.tasks)) == len(self.tasks) and all(task.strip() for task in self.tasks),
            "lm_eval.tasks of names, each once",
            lm_eval__tasks=self.tasks,
        )
        faults.need(
            not self.tasks or bool(self.include_path),
            "lm_eval.include_path, the folder of the task files, where there are lm_eval.tasks",
            lm_eval__include_path=self.include_path,
        )
        faults.need(self.limit is None or self.limit >= 1, "lm_eval.limit >= 1 or null", lm_eval__limit=self.limit)
        faults.need(
            self.num_fewshot is None or self.num_fewshot >= 0,
            "lm_eval.num_fewshot >= 0 or null",
            lm_eval__num_fewshot=self.num_fewshot,
        )
        faults.need(self.batch_size >= 1, "lm_eval.batch_size >= 1", lm_eval__batch_size=self.batch_size)
