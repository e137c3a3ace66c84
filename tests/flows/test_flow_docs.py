"""What docs/flows.md says of schemas and types is what they do."""

import re
from pathlib import Path

from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.reader import examine_flow
from stepflow_trio.flows.schema_documents import SchemaDocument, SchemaPool
from stepflow_trio.flows.schemas import FlowSchemas
from stepflow_trio.flows.source import read_source
from stepflow_trio.flows.subtyping import Verdict, subtype
from stepflow_trio.flows.type_check import check_types
from stepflow_trio.protocol.payloads import ComponentInfo

PAGE = (Path(__file__).parents[2] / "docs" / "flows.md").read_text(encoding="utf-8")
INTEGER, STRING = {"type": "integer"}, {"type": "string"}


def test_the_table_of_schemas_has_every_part_and_its_code():
    rows = re.findall(r"^\| `([a-zA-Z.]+)`: .* \| .* \(−(\d+)\) \|$", PAGE, re.MULTILINE)
    parts = {"input": False, "variables": False, "steps": {"properties": {"ID": False}}, "output": False}
    schemas = FlowSchemas(Flow(schemas={"properties": parts}))
    found = {
        "input": schemas.check_input(1),
        "variables": schemas.check_variables({}),
        "steps.properties.ID": schemas.check_step_output("ID", 1),
        "output": schemas.check_output(1),
    }
    assert {part: -int(code) for part, code in rows} == {part: error.code for part, error in found.items()}


def test_the_table_of_types_has_the_verdicts_of_the_check():
    words = {Verdict.YES: "fits", Verdict.NO: "does not fit", Verdict.INDETERMINATE: "may fit"}
    rows = re.findall(r"^\| `(\{.*\})` \| `(\{.*\})` \| ([a-z ]+) \|$", PAGE, re.MULTILINE)
    assert {verdict for _, _, verdict in rows} == set(words.values())
    for sub, sup, verdict in rows:
        pool = SchemaPool()
        one, other = (
            pool.gather(SchemaDocument(read_source(text, name="t.yaml").value)) for text in (sub, sup)
        )
        assert words[subtype(one, other, pool).verdict] == verdict, (sub, sup)


def test_the_type_error_that_is_shown_is_the_one_that_is_given():
    [shown] = re.findall(
        r"^```console\n\$ .*--type-check\n(.*?)^flow\.yaml: 1 error", PAGE, re.MULTILINE | re.DOTALL
    )
    text = """\
name: total
description: Adds up.
schemas:
  type: object
  properties:
    input:
      type: object
      properties:
        name: { type: string }
steps:
  - id: sum
    component: /demo/add
    input: { a: { $input: $.name }, b: 1 }
output: { $step: sum }
"""
    reading = examine_flow(text, name="flow.yaml")
    takes = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "required": ["a", "b"]}
    add = ComponentInfo(component="/add", input_schema=takes, output_schema=INTEGER)
    types = check_types(reading.runnable_flow(), {"/demo/add": add})
    assert "\n".join(str(reading.source.diagnostic(finding)) for finding in types.findings) == shown.rstrip(
        "\n"
    )
