"""The bodies of requests, as OpenAI and vLLM name their fields; numbers have ranges.

Nothing that could change an answer is taken and ignored: of fields that this server does not offer, only the value
that asks for nothing is. Those of OpenAI's that change no answer (`user`, `metadata` …) are taken as they come.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from octavo.model.chat import Message
from octavo.runtime.params import SamplingParams

MOST_REPLIES = 8  # `n`
MOST_PROMPTS = 64
MOST_STOPS = 4
LONGEST_STOP = 1024
LARGEST_SEED = 2**63 - 1
DEFAULT_TEMPERATURE = 1.0  # OpenAI's
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's

# Known to OpenAI's clients and not offered here.
UNSUPPORTED = frozenset(
    {
        "audio", "best_of", "frequency_penalty", "function_call", "functions", "logit_bias", "modalities",
        "parallel_tool_calls", "prediction", "presence_penalty", "reasoning_effort", "service_tier", "store",
        "suffix", "tool_choice", "tools", "verbosity", "web_search_options",
    }
)  # fmt: skip


def _whole(value: Any) -> Any:
    """5.0 is 5: JSON makes no difference."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, Field(max_length=2**21)]
Token = Annotated[Whole, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Body(BaseModel):
    """A body, or a part of one: types are not converted, and what is not named here is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool = False


class Drawing(Body):
    """Which model writes, how its tokens are drawn, and what ends it."""

    model: Annotated[str, Field(max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, lt=2**31, description="-1 and 0 keep all")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[Whole, Field(ge=-LARGEST_SEED, le=LARGEST_SEED)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]], Field(max_length=MOST_STOPS)
        ]
        | None
    ) = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=DEFAULT_TEMPERATURE if self.temperature is None else float(self.temperature),
            top_k=self.top_k if self.top_k is not None and self.top_k > 0 else None,
            top_p=1.0 if self.top_p is None else float(self.top_p),
            min_p=0.0 if self.min_p is None else float(self.min_p),
            repetition_penalty=1.0 if self.repetition_penalty is None else float(self.repetition_penalty),
            seed=None if self.seed is None else self.seed & LARGEST_SEED,
        )


class Generation(Drawing):
    """What completions and chats have in common."""

    n: Annotated[Whole, Field(ge=1, le=MOST_REPLIES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    user: str | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def streams_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(Generation):
    """`POST /v1/completions`: text, or token ids, to be continued; control tokens may be spelled out."""

    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    max_tokens: Annotated[Whole, Field(ge=0, lt=2**31)] | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[Whole, Field(ge=1, le=1)] | None = None
    suffix: None = None


class TextPart(Body):
    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """A turn of a chat; the fields without a value are those that clients send back with a reply."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=1024)]
    name: None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def message(self) -> Message:
        parts = self.content if isinstance(self.content, list) else [TextPart(type="text", text=self.content)]
        return Message(self.role, "".join(part.text for part in parts))


class PlainText(Body):
    type: Literal["text"]


class JsonObject(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    name: Annotated[str, Field(max_length=64)]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JsonSchema(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class Pattern(Body):
    """A regular expression in the syntax of Rust's crate regex, matched by the whole reply."""

    type: Literal["regex"]
    pattern: str


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema | Pattern, Field(discriminator="type")]


class Conversation(Body):
    """The messages of a chat, and how their prompt ends."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class ChatRequest(Conversation, Generation):
    """`POST /v1/chat/completions`."""

    max_tokens: Annotated[Whole, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[Whole, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None

    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None


class TokenizeRequest(Body):
    """`POST /tokenize`, of a text, as vLLM has it; without `model` the first is meant."""

    model: str | None = None
    prompt: Text
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(Conversation):
    """`POST /tokenize` of a chat, and `POST /apply_template`."""

    model: str | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """`POST /detokenize`, as vLLM has it."""

    model: str | None = None
    tokens: list[Token]


class ModelRequest(Body):
    """`POST /models/load` and `/models/unload`."""

    model: str
