// SPDX-License-Identifier: Apache-2.0
// Node's http: what it was sent comes back, chunked if the path starts with /chunked.
"use strict";

require("node:http")
  .createServer((request, response) => {
    const pieces = [Buffer.from(`${request.url}\n`)];
    request.on("data", (piece) => pieces.push(piece));
    request.on("end", () => {
      const body = Buffer.concat(pieces);
      response.statusCode = request.url.endsWith("/missing") ? 404 : 200;
      if (!request.url.startsWith("/chunked")) response.setHeader("Content-Length", body.length);
      response.end(body);
    });
  })
  .listen(Number(process.argv[2]), "::");
