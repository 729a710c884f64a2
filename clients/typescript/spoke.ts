// A spoke in TypeScript: registers, offers two operations, takes calls until it is interrupted. Everything that it says to the hub goes
// through the client that openapi-typescript generates from the contract (hub.ts).
import createClient from "openapi-fetch";
import { randomUUID } from "node:crypto";
import type { components, paths } from "./hub.ts";

type Call = components["schemas"]["TakenCall"];

const url = process.env.HUB_URL ?? "http://127.0.0.1:8080";
const key = process.env.HUB_API_KEY;
if (!key) throw new Error("set HUB_API_KEY");
const hub = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

class Failure extends Error {
  constructor(readonly code: string, readonly details: unknown = {}) { super(code); }
}

// What it offers: a contract, and the function that keeps it.
const operations: { offer: components["schemas"]["OperationOffer"]; run: (input: any, stopped: AbortSignal) => Promise<unknown> }[] = [
  {
    offer: {
      namespace: "ts", name: "reverse", kind: "query", maxAttempts: 3, annotations: { readOnlyHint: true },
      inputSchema: { type: "object", required: ["text"], properties: { text: { type: "string" } } },
      outputSchema: { type: "object", required: ["text"], properties: { text: { type: "string" } } },
    },
    run: async (input) => {
      if (input.text === "") throw new Failure("nothing_to_reverse", { text: input.text });
      return { text: [...input.text].reverse().join("") };
    },
  },
  {
    offer: { namespace: "ts", name: "sleep", kind: "mutation", inputSchema: { type: "object", properties: { seconds: { type: "number" } } } },
    run: (input, stopped) => new Promise((resolve, reject) => {
      const timer = setTimeout(() => resolve({ slept: input.seconds }), 1000 * (input.seconds ?? 1));
      stopped.addEventListener("abort", () => { clearTimeout(timer); reject(new Failure("stopped")); });
    }),
  },
];

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const running = new Map<string, AbortController>();
let spoke = { id: "", epoch: 0 };
let ending = false;

// connect registers, which begins a new epoch, and says what is offered.
async function connect() {
  const registered = await hub.POST("/v1/spokes", { body: { name: process.env.SPOKE_NAME ?? "typescript-1", leaseSeconds: 15 } });
  if (!registered.data) throw new Error(registered.error.detail);
  spoke = registered.data;
  const put = await hub.PUT("/v1/spokes/{spokeId}/operations", {
    params: { path: { spokeId: spoke.id } }, body: { epoch: spoke.epoch, operations: operations.map((o) => o.offer) },
  });
  if (!put.data) throw new Error(JSON.stringify(put.error));
  console.log(`connected, epoch ${spoke.epoch}`);
}

// insist asks until there is an answer: what was said may have been heard though its answer got lost.
async function insist<T extends { response: Response; error?: { code: string } }>(send: () => Promise<T>): Promise<T> {
  for (;;) {
    const answer = await send().catch(() => undefined);
    if (answer && answer.response.status < 500 && answer.response.status !== 429 && answer.error?.code !== "idempotency_in_progress") return answer;
    await pause(500);
  }
}

// perform does one call. With an Idempotency-Key the start may be said again; the end is refused the second time, which does no harm.
async function perform(call: Call, { id: spokeId, epoch }: typeof spoke, stop: AbortController) {
  const path = { callId: call.id };
  const idempotency = randomUUID();
  const started = await insist(() => hub.POST("/v1/calls/{callId}/start", { params: { path, header: { "Idempotency-Key": idempotency } }, body: { spokeId, epoch } }));
  if (started.error) return console.log(`${call.id}: ${started.error.code}`);
  let output: unknown, fault: Failure | undefined;
  try {
    const operation = operations.find((o) => `${o.offer.namespace}.${o.offer.name}` === call.operation);
    if (!operation) throw new Failure("operation_unknown");
    output = await operation.run(call.input, stop.signal);
  } catch (error) {
    fault = error instanceof Failure ? error : new Failure("exception", { message: String(error) });
  }
  if (stop.signal.aborted) return console.log(`${call.id}: stopped`); // it is over already
  const said = fault
    ? await insist(() => hub.POST("/v1/calls/{callId}/fail", { params: { path }, body: { spokeId, epoch, code: fault.code, error: fault.details } }))
    : await insist(() => hub.POST("/v1/calls/{callId}/complete", { params: { path }, body: { spokeId, epoch, output: output } }));
  console.log(`${call.id}: ${said.data?.status ?? said.error?.code}`);
}

for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => { ending = true; leave.abort(); });
const leave = new AbortController();

await connect();
while (!ending) {
  const room = 4 - running.size;
  const taken = await hub.POST("/v1/spokes/{spokeId}/take", {
    params: { path: { spokeId: spoke.id } }, body: { epoch: spoke.epoch, maxCalls: room, waitSeconds: room > 0 ? 20 : 1 }, signal: leave.signal,
  }).catch(() => undefined);
  if (!taken?.data) {
    if (ending) break;
    const gone = taken?.error?.code === "spoke_epoch_stale"; // the connection has ended: what it held is somebody else's by now
    if (gone) for (const stop of running.values()) stop.abort();
    await (gone ? connect() : pause(500)).catch((error) => { console.log(String(error)); return pause(1000); });
    continue;
  }
  for (const id of taken.data.stopped) running.get(id)?.abort();
  for (const call of taken.data.calls) {
    const stop = new AbortController();
    running.set(call.id, stop);
    void perform(call, spoke, stop).finally(() => running.delete(call.id));
  }
}
await hub.POST("/v1/spokes/{spokeId}/disconnect", { params: { path: { spokeId: spoke.id } }, body: { epoch: spoke.epoch } });
console.log("disconnected");
process.exit(0);
