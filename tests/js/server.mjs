// The reference server, on free ports of loopback, with its default settings: what load is compared with.
//
// Prints `listens PORT`, and ends with its input.

import { createServer } from "node:http";
import { Server } from "socket.io";

const server = createServer();
new Server(server);
server.listen({ host: "127.0.0.1", port: 0, backlog: 1_024 }, () => console.log(`listens ${server.address().port}`));
process.stdin.on("end", () => process.exit(0)).resume();
