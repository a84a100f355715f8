// An unmodified Socket.IO server, as somebody has one: `node upstream.mjs NAME [PORT]`.
//
// It prints its port, answers `who` with its name, `echo` with what it got, and plain requests with both.

import { createServer } from "node:http";
import { Server } from "socket.io";

const [name, port = "0"] = process.argv.slice(2);

const http = createServer((request, response) => {
  const { method, url, headers } = request;
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ name, method, url, uid: headers["x-mesh-uid"] ?? null }));
});

const io = new Server(http, { cors: { origin: "*" } });
io.on("connection", (socket) => {
  const uid = socket.handshake.headers["x-mesh-uid"] ?? null;
  socket.on("who", (answer) => answer({ name, uid, id: socket.id }));
  socket.on("echo", (what, answer) => answer(what));
});

http.listen(Number(port), "127.0.0.1", () => console.log(JSON.stringify({ port: http.address().port })));
