"""The configuration: its sections, presets and sizes in TOML, overrides, and what cannot be."""

# ruff: noqa: F401, what other rooms import from here
from golfcore.config.load import (
    SECTIONS,
    coerce,
    differences,
    from_dict,
    keys,
    load,
    of_run,
    override,
    parse_override,
    parse_overrides,
    preset_names,
    read_toml,
    size_names,
    to_dict,
)
from golfcore.config.schema import (
    AverageConfig,
    Config,
    DataConfig,
    EvalConfig,
    MetaConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    ReptileConfig,
    RunConfig,
    ScheduleConfig,
    TTTConfig,
)
