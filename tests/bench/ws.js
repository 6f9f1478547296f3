// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A server on ws under Node, as `make bench` measures it: see common.h for what it does.
// Settings: no compression; native unmasking by bufferutil, which ws uses if it is installed;
// Node sets TCP_NODELAY.
'use strict';

const { WebSocketServer } = require('ws');
const { version } = require('ws/package.json');

const [job, port = '0'] = process.argv.slice(2);

const jobs = {
    echo(socket, data, isBinary) {
        socket.send(data, { binary: isBinary });
    },
    json(socket, data) {
        const json = JSON.parse(data);
        json.to = 'all';
        socket.send(JSON.stringify(json));
    },
    broadcast(socket, data, isBinary) {
        for (const each of server.clients) each.send(data, { binary: isBinary });
    },
};
const handle = jobs[job];
if (!handle) throw new Error('usage: echo|json|broadcast [PORT]');

const server = new WebSocketServer({
    host: '127.0.0.1',
    port: Number(port),
    backlog: 4096,
    maxPayload: 4 << 20,
    perMessageDeflate: false,
});
server.on('listening', () => {
    console.log(`${server.address().port} ws ${version}, Node ${process.versions.node}`);
});
server.on('connection', (socket) => {
    socket.on('message', (data, isBinary) => handle(socket, data, isBinary));
    socket.on('error', () => {});  // the peer is lost; 'close' follows
});
