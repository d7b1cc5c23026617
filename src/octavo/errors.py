"""Every exception that Octavo raises on purpose.

    OctavoError
    ├── UsageError              a value that the caller gave lies outside what is accepted
    │   └── ContextLengthError  a prompt that is longer than the model's context
    ├── CheckpointError         a model folder, or a file in it, is missing, damaged or contradictory
    ├── UnsupportedModelError   the files are sound, but describe something that Octavo does not run
    ├── TokenizerError          a tokenizer is missing or unusable
    ├── TemplateError           a chat template is missing, broken or out of bounds
    ├── CorpusError             a text is missing, unreadable or too short
    ├── NumericalError          NaN or Inf where a number should be
    ├── OutputError             the place to write to is not ours, or is full
    ├── ResumeError             a started job cannot be continued with other inputs
    ├── GrammarError            a grammar that a reply must follow is broken or out of bounds
    ├── DeviceError             a GPU, its driver or its compiler does not do what it is asked
    ├── OverloadError           more work is waiting than is taken; come back later
    └── EngineError             the engine stopped, and with it what it was writing

Each message is one sentence that names the thing and the way out. `assert` is for our own mistakes only.
"""


class OctavoError(Exception):
    """Base of the tree; its text is meant for the person at the keyboard."""

    def __str__(self) -> str:
        """One line, whatever stands in the names that strangers give: they break no line and steer no terminal."""
        text = super().__str__()
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(OctavoError, ValueError):
    """A value that the caller gave lies outside what is accepted."""


class ContextLengthError(UsageError):
    """A prompt that is longer than the model's context."""


class CheckpointError(OctavoError):
    """A model folder, or a file in it, is missing, damaged or contradictory."""


class UnsupportedModelError(OctavoError):
    """The files are sound, but describe something that Octavo does not run."""


class TokenizerError(OctavoError):
    """A tokenizer is missing or unusable."""


class TemplateError(OctavoError):
    """A chat template is missing, broken or out of bounds."""


class CorpusError(OctavoError):
    """A text is missing, unreadable or too short."""


class NumericalError(OctavoError):
    """NaN or Inf where a number should be."""


class OutputError(OctavoError):
    """The place to write to is not ours, or is full."""


class ResumeError(OctavoError):
    """A started job cannot be continued with other inputs."""


class GrammarError(OctavoError):
    """A grammar that a reply must follow is broken or out of bounds."""


class DeviceError(OctavoError):
    """A GPU, its driver or its compiler does not do what it is asked."""


class OverloadError(OctavoError):
    """More work is waiting than is taken; come back later."""


class EngineError(OctavoError):
    """The engine stopped, and with it what it was writing."""
