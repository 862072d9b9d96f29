"""The peer in Python: FastAPI and asyncpg, one INSERT a request. uvicorn runs two workers of it."""

import contextlib
import os

import asyncpg
from fastapi import FastAPI, Request


@contextlib.asynccontextmanager
async def lifespan(app):
    size = int(os.environ["BENCH_CONNECTIONS"]) // int(os.environ["BENCH_WORKERS"])
    # asyncpg prepares each statement once a connection.
    async with asyncpg.create_pool(os.environ["BENCH_DATABASE_URL"], min_size=size, max_size=size) as pool:
        app.state.pool = pool
        yield


app = FastAPI()
app.router.lifespan_context = lifespan  # FastAPI before 0.93 has no argument for it


@app.get("/ping")
async def ping():
    return "Pong"


@app.post("/ticket")
async def ticket(request: Request):
    body = await request.body()
    number = await request.app.state.pool.fetchval(
        "INSERT INTO bodies_fastapi (body) VALUES ($1) RETURNING id", body
    )
    return {"id": str(number), "status": "STORED"}
