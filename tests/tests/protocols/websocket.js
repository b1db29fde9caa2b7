// A WebSocket server and client (RFC 6455) of the package ws.
//
//   node websocket.js serve PORT
//   node websocket.js talk PORT
const assert = require("assert");
const { WebSocket, WebSocketServer } = require("ws");
const [role, port] = process.argv.slice(2);

function serve() {
  const server = new WebSocketServer({ host: "127.0.0.1", port });
  server.on("connection", (socket) => {
    // The server may speak first here, too.
    socket.send("welcome");
    socket.on("message", (data, binary) => socket.send(data, { binary }));
  });
}

function talk() {
  const big = Buffer.alloc(1_000_000, "x");
  const sent = ["hello", "", "\u00e4\u20ac", big];
  const said = [];
  const socket = new WebSocket(`ws://127.0.0.1:${port}/chat`);
  socket.on("open", () => sent.forEach((message) => socket.send(message)));
  socket.on("ping", () => {});
  socket.on("message", (data) => {
    said.push(data);
    if (said.length <= sent.length) return;
    socket.ping();
    socket.on("pong", () => socket.close(4321, "enough"));
  });
  socket.on("close", (code, reason) => {
    assert.deepStrictEqual([code, reason.toString()], [4321, "enough"]);
    const expected = ["welcome", ...sent].map((message) => Buffer.from(message));
    assert.ok(expected.every((message, place) => message.equals(said[place])));
    console.log("content");
  });
}

({ serve, talk })[role]();
