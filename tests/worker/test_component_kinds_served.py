"""Components written in every way that Python authors write functions, listed and executed side by side."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import attrs
import jsonschema_rs
import msgspec
import pydantic
import pytest
from serving_stage import RUN, execute, serving

from stepflow_trio import Context, Worker
from stepflow_trio.errors import CallFailed, ErrorCode
from stepflow_trio.protocol import methods
from stepflow_trio.protocol.payloads import ComponentInfo

if TYPE_CHECKING:
    from nowhere import Nothing  # type: ignore[import-not-found]


class PydanticOrder(pydantic.BaseModel):
    sku: int
    note: Annotated[str, pydantic.Field(max_length=5)] = "none"


@attrs.define
class AttrsOrder:
    sku: int
    note: str = "none"


@dataclasses.dataclass
class DataclassOrder:
    sku: int
    note: str = "none"


class StructOrder(msgspec.Struct):
    sku: int
    note: str = "none"


class TypedOrder(TypedDict):
    sku: int


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    def order(self, sku: int) -> str:
        return f"{self.name} {sku}"

    async def order_later(self, sku: int, ctx: Context) -> list[Any]:
        return [self.name, sku, ctx.run_id]

    @classmethod
    def of_the_class(cls, sku: int) -> str:
        return f"{cls.__name__} {sku}"

    @staticmethod
    def of_nobody(sku: int) -> int:
        return sku

    def __call__(self, sku: int) -> str:
        return f"called {sku}"


def worker_of_all_kinds() -> Worker:
    worker = Worker()

    @worker.component
    async def by_pydantic(order: PydanticOrder) -> PydanticOrder:
        assert type(order) is PydanticOrder
        return order

    @worker.component
    async def by_attrs(order: AttrsOrder) -> AttrsOrder:
        assert type(order) is AttrsOrder
        return order

    @worker.component
    async def by_dataclass(order: DataclassOrder) -> DataclassOrder:
        assert type(order) is DataclassOrder
        return order

    @worker.component
    async def by_struct(order: StructOrder) -> StructOrder:
        assert type(order) is StructOrder
        return order

    @worker.component
    async def by_typed_dict(order: TypedOrder) -> TypedOrder:
        return order

    @worker.component
    def not_annotated(sku, note="none"):  # type: ignore[no-untyped-def]
        return {"sku": sku, "note": note}

    @worker.component
    def without_parameters() -> str:
        return "nothing"

    @worker.component
    async def nothing_but_a_context(whatever: Context) -> str | None:
        return whatever.run_id

    @worker.component
    async def context_first(surroundings: Context, sku: int) -> list[Any]:
        return [surroundings.run_id, sku]

    @worker.component
    async def context_last(sku: int, *, note: str = "none", c: Context) -> list[Any]:
        return [c.run_id, sku, note]

    shop = Shop("corner")
    worker.add_component(shop.order)
    worker.add_component(shop.order_later)
    worker.add_component(Shop.of_the_class)
    worker.add_component(shop.of_nobody)
    worker.add_component(shop, path="/called")

    @worker.component
    async def broken(x: Nothing) -> int:
        raise AssertionError("it cannot be called")

    @worker.component
    async def returns_nothing_known() -> Nothing:
        return 1

    @worker.component
    async def not_a_number(sku: int) -> float:
        return sku * float("nan")

    return worker


ORDER = {"sku": 7, "note": "x"}

CALLS = [
    ("by_pydantic", ORDER, ORDER),
    ("by_pydantic", {"sku": 7}, {"sku": 7, "note": "none"}),
    ("by_attrs", ORDER, ORDER),
    ("by_dataclass", ORDER, ORDER),
    ("by_struct", {"sku": 7}, {"sku": 7, "note": "none"}),
    ("by_typed_dict", {"sku": 7}, {"sku": 7}),
    ("not_annotated", {"sku": [None]}, {"sku": [None], "note": "none"}),
    ("without_parameters", {}, "nothing"),
    ("without_parameters", None, "nothing"),
    ("without_parameters", {"un": "used"}, "nothing"),
    ("nothing_but_a_context", {}, RUN),
    ("context_first", {"sku": 7}, [RUN, 7]),
    ("context_last", ORDER, [RUN, 7, "x"]),
    ("order", {"sku": 7}, "corner 7"),
    ("order_later", {"sku": 7}, ["corner", 7, RUN]),
    ("of_the_class", {"sku": 7}, "Shop 7"),
    ("of_nobody", {"sku": 7}, 7),
    ("called", {"sku": 7}, "called 7"),
    ("returns_nothing_known", {}, 1),
]

NEED_A_SKU = [
    "by_pydantic", "by_attrs", "by_dataclass", "by_struct", "by_typed_dict", "context_first", "context_last",
    "order", "order_later", "of_the_class", "of_nobody", "called", "not_a_number",
]  # fmt: skip


async def listed(worker: Worker) -> dict[str, ComponentInfo]:
    async with serving(worker) as connection:
        answer = await connection.call(methods.COMPONENTS_LIST, methods.p.ListParams())
    return {info.component.removeprefix("/"): info for info in answer.components}


@pytest.mark.parametrize(("component", "input", "output"), CALLS)
async def test_each_gets_its_input_as_it_is_annotated(component: str, input: Any, output: Any) -> None:
    async with serving(worker_of_all_kinds()) as connection:
        assert await execute(connection, f"/{component}", input) == output


async def test_all_are_listed_and_what_is_wrong_with_one_costs_no_other_its_schema() -> None:
    worker = worker_of_all_kinds()
    infos = await listed(worker)
    assert set(infos) == {component.path.removeprefix("/") for component in worker.components}
    assert infos["broken"].input_schema in ({}, None)
    for component, input, output in CALLS:
        jsonschema_rs.validator_for(infos[component].input_schema).validate(input or {})
        jsonschema_rs.validator_for(infos[component].output_schema).validate(output)
    for component in NEED_A_SKU:
        schema = infos[component].input_schema
        assert not jsonschema_rs.validator_for(schema).is_valid({"sku": "seven"}), component
        assert not jsonschema_rs.validator_for(schema).is_valid({}), component
        assert "ctx" not in str(schema), "a context is no input"


@pytest.mark.parametrize("component", NEED_A_SKU)
async def test_an_input_that_does_not_fit_is_refused_by_each_at_its_place(component: str) -> None:
    async with serving(worker_of_all_kinds()) as connection:
        with pytest.raises(CallFailed) as caught:
            await execute(connection, f"/{component}", {"sku": "seven"})
    assert (caught.value.code, caught.value.data["path"]) == (ErrorCode.INVALID_INPUT_SCHEMA, "$.sku")


async def test_one_that_cannot_be_called_says_why_and_the_others_can() -> None:
    async with serving(worker_of_all_kinds()) as connection:
        with pytest.raises(CallFailed, match="Nothing") as caught:
            await execute(connection, "/broken", {"x": 1})
        assert caught.value.code == ErrorCode.CONFIGURATION_ERROR
        assert await execute(connection, "/by_pydantic", ORDER) == ORDER


async def test_a_result_that_is_not_a_number_fails_its_call_and_is_never_null() -> None:
    async with serving(worker_of_all_kinds()) as connection:
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/not_a_number", {"sku": 7})
        assert caught.value.code == ErrorCode.COMPONENT_FAILED
        assert await execute(connection, "/order", {"sku": 7}) == "corner 7"
