// Writes down each request that it has read to its end, one JSON line each, and answers
// with its method and target.
//
//   node recorder.js PORT HTTP2_PORT FILE
const fs = require("fs");
const [port, http2Port, file] = process.argv.slice(2);
const record = fs.openSync(file, "a");

function serve(request, response) {
  const body = [];
  request.on("error", () => {});
  request.on("data", (piece) => body.push(piece));
  request.on("end", () => {
    if (!request.complete) return;
    const read = {
      line: `${request.method} ${request.url} HTTP/${request.httpVersion}`,
      host: request.headers[":authority"] ?? request.headers.host ?? "",
      body: Buffer.concat(body).toString("latin1"),
      status: 200,
    };
    fs.writeSync(record, Buffer.from(JSON.stringify(read) + "\n", "latin1"));
    response.end(`${request.method} ${request.url}\n`);
  });
}

// Where nobody upgrades, a request that asks for it is a request like any other.
const options = { shouldUpgradeCallback: () => false };
require("http").createServer(options, serve).listen(port, "127.0.0.1");
require("http2").createServer(serve).listen(http2Port, "127.0.0.1");
