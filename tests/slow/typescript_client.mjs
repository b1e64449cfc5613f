// A client of the TypeScript SDK: calls one tool, answers what it is asked, and writes down what it saw.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const { era, url, command, args, env, call } = JSON.parse(process.argv[2]);
const asked = [];
let reports = 0;
const client = new Client(
  { name: "typescript", version: "1" },
  {
    capabilities: { elicitation: { form: {} } },
    versionNegotiation: { mode: era === "legacy" ? "legacy" : { pin: era } },
  },
);
client.setRequestHandler("elicitation/create", (request) => {
  asked.push(request.params.message);
  return { action: "accept", content: { decision: "allow" } };
});
await client.connect(
  url === undefined ? new StdioClientTransport({ command, args, env }) : new StreamableHTTPClientTransport(new URL(url)),
);
const { tools } = await client.listTools();
const result = await client.callTool(
  { name: call.name, arguments: call.arguments },
  { onprogress: () => (reports += 1), resetTimeoutOnProgress: true },
);
// A failure must come through as it was answered, not as a complaint about its form.
const failed = await client.callTool({ name: "get_session", arguments: { session_id: "missing" } });
const seen = { failed, tools: tools.map((tool) => tool.name), result, asked, reports, server: client.getServerVersion()?.name };
await client.close();
process.stdout.write(JSON.stringify(seen));
