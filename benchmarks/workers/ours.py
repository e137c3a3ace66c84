"""The `add` component on stepflow_trio, in each of the three ways to run a function."""

from stepflow_trio import Worker

worker = Worker()


@worker.component("/add")
async def add(a: int, b: int) -> dict[str, int]:
    return {"c": a + b}


@worker.component("/add_inline", inline=True)
def add_inline(a: int, b: int) -> dict[str, int]:
    return {"c": a + b}


@worker.component("/add_in_thread")
def add_in_thread(a: int, b: int) -> dict[str, int]:
    return {"c": a + b}


if __name__ == "__main__":
    worker.run_stdio()
