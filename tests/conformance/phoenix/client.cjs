// The official Phoenix client, a line of JSON at a time: `client.cjs URL KEY HEARTBEAT_MS`.
//
// `["join", topic]`, `["push", topic, event, payload]` and `["leave", topic]` come in; whatever
// happens goes out as a list that begins with a word for it.
"use strict";

const readline = require("node:readline");
const { Socket } = require("phoenix");
const WebSocket = require("ws");

const AGAIN_AFTER_MS = 50;
const [url, key, heartbeat] = process.argv.slice(2);
const say = (...what) => console.log(JSON.stringify(what));

const socket = new Socket(`${url}/socket`, {
  transport: WebSocket,
  params: { token: key },
  heartbeatIntervalMs: Number(heartbeat),
  reconnectAfterMs: () => AGAIN_AFTER_MS,
  rejoinAfterMs: () => AGAIN_AFTER_MS,
});
socket.onOpen(() => say("opened"));
socket.onClose(({ code }) => say("closed", code));
socket.onMessage(({ topic, event, payload }) => {
  if (topic === "phoenix") say("beat", event, payload);
});
socket.connect();

const channels = new Map();
const commands = {
  join(topic) {
    const channel = socket.channel(topic, {});
    channels.set(topic, channel);
    channel.onMessage = (event, payload) => {
      if (!/^(phx|chan)_/.test(event)) say("heard", topic, event, payload);
      return payload;
    };
    channel.onClose(() => say("left", topic));
    channel
      .join()
      .receive("ok", (response) => say("joined", topic, response))
      .receive("error", (response) => say("refused", topic, response));
  },
  push(topic, event, payload) {
    channels
      .get(topic)
      .push(event, payload)
      .receive("ok", (response) => say("ok", topic, response))
      .receive("error", (response) => say("error", topic, response));
  },
  leave(topic) {
    channels.get(topic).leave();
  },
};

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const [name, ...rest] = JSON.parse(line);
  commands[name](...rest);
});
