import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { afterEach, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { client, collection, email, relation, restart, superuser, text, user } from "../support.mjs";

// Inbox collects events; next waits for one, quiet asserts that none comes.
class Inbox {
  events = [];
  waiting = [];

  push = (event) => {
    const resolve = this.waiting.shift();
    return resolve ? resolve(event) : this.events.push(event);
  };

  async next(timeout = 5000) {
    if (this.events.length > 0) {
      return this.events.shift();
    }
    const stop = new AbortController();
    const event = await Promise.race([
      new Promise((resolve) => this.waiting.push(resolve)),
      sleep(timeout, undefined, { signal: stop.signal }).then(() => assert.fail(`no event within ${timeout} ms`)),
    ]);
    stop.abort();
    return event;
  }

  async quiet(time = 400) {
    await sleep(time);
    assert.deepEqual(this.events, []);
  }
}

describe("realtime", () => {
  let rooms, messages;
  const clients = [];
  const connect = (pb = client()) => {
    clients.push(pb);
    return pb;
  };

  before(async () => {
    rooms = await collection("rooms", { fields: [text("name")] });
    messages = await collection("messages", { fields: [text("body"), text("kind"), relation("room", rooms)] });
  });
  afterEach(async () => {
    for (const pb of clients.splice(0)) {
      await pb.realtime.unsubscribe();
    }
  });
  const send = (data) => client().collection(messages.name).create(data);

  it("tells of every change of a collection", async () => {
    const inbox = new Inbox();
    await connect().collection(messages.name).subscribe("*", inbox.push);
    const made = await send({ body: "one" });
    const create = await inbox.next();
    assert.equal(create.action, "create");
    assert.deepEqual(create.record, made);

    await client().collection(messages.name).update(made.id, { body: "two" });
    const update = await inbox.next();
    assert.deepEqual([update.action, update.record.id, update.record.body], ["update", made.id, "two"]);

    await client().collection(messages.name).delete(made.id);
    const removed = await inbox.next();
    assert.deepEqual([removed.action, removed.record.id], ["delete", made.id]);
  });

  it("tells of one record", async () => {
    const [a, b] = [await send({ body: "a" }), await send({ body: "b" })];
    const inbox = new Inbox();
    await connect().collection(messages.name).subscribe(a.id, inbox.push);
    await client().collection(messages.name).update(b.id, { body: "b2" });
    await client().collection(messages.name).update(a.id, { body: "a2" });
    const event = await inbox.next();
    assert.deepEqual([event.action, event.record.id, event.record.body], ["update", a.id, "a2"]);
    await inbox.quiet();
  });

  it("filters, expands and selects per subscription", async () => {
    const room = await client().collection(rooms.name).create({ name: "lobby" });
    const [loud, all] = [new Inbox(), new Inbox()];
    const pb = connect();
    await pb.collection(messages.name).subscribe("*", loud.push, {
      filter: pb.filter("kind = {:kind}", { kind: "loud" }), expand: "room", fields: "id,body,expand.room.name",
    });
    await pb.collection(messages.name).subscribe("*", all.push);
    await send({ body: "psst", kind: "quiet", room: room.id });
    const made = await send({ body: "HEY", kind: "loud", room: room.id });
    const event = await loud.next();
    assert.deepEqual(event.record, { id: made.id, body: "HEY", expand: { room: { name: "lobby" } } });
    assert.deepEqual(new Set([(await all.next()).record.body, (await all.next()).record.body]), new Set(["psst", "HEY"]));
    await loud.quiet();
  });

  it("stops with the last unsubscribe and keeps the other subscriptions", async () => {
    const pb = connect();
    const [first, second] = [new Inbox(), new Inbox()];
    const stop = await pb.collection(messages.name).subscribe("*", first.push);
    await pb.collection(rooms.name).subscribe("*", second.push);
    await stop();
    await send({ body: "unheard" });
    await client().collection(rooms.name).create({ name: "heard" });
    assert.equal((await second.next()).record.name, "heard");
    await first.quiet();
    await pb.collection(rooms.name).unsubscribe();
    assert.equal(pb.realtime.isConnected, false);
  });

  it("follows the rules of whoever listens", async () => {
    const users = await (await superuser()).collections.getOne("users");
    const mine = "owner = @request.auth.id";
    const notes = await collection("rtnotes", {
      fields: [text("title"), relation("owner", users)],
      rules: { listRule: mine, viewRule: mine, createRule: mine, updateRule: mine, deleteRule: mine },
    });
    const [ada, eve, guest] = [connect(await user()), connect(await user()), connect()];
    const inboxes = [new Inbox(), new Inbox(), new Inbox()];
    for (const [i, pb] of [ada, eve, guest].entries()) {
      await pb.collection(notes.name).subscribe("*", inboxes[i].push);
    }
    const note = await ada.collection(notes.name).create({ title: "mine", owner: ada.authStore.record.id });
    assert.equal((await inboxes[0].next()).record.id, note.id);
    await ada.collection(notes.name).delete(note.id);
    assert.equal((await inboxes[0].next()).action, "delete");
    await inboxes[1].quiet();
    await inboxes[2].quiet();
  });

  it("tells of what a batch wrote", async () => {
    await (await superuser()).settings.update({ batch: { enabled: true, maxRequests: 50, timeout: 5 } });
    const inbox = new Inbox();
    await connect().collection(messages.name).subscribe("*", inbox.push);
    const batch = client().createBatch();
    batch.collection(messages.name).create({ body: "batch 1" });
    batch.collection(messages.name).create({ body: "batch 2" });
    await batch.send();
    const bodies = [(await inbox.next()).record.body, (await inbox.next()).record.body];
    assert.deepEqual(bodies.sort(), ["batch 1", "batch 2"]);
  });

  it("signs in by OAuth2 in another window, which answers through the stream", async () => {
    const address = email("oauth");
    const seen = [];
    const provider = createServer((request, response) => {
      const { pathname, searchParams } = new URL(request.url, "http://provider");
      seen.push(pathname);
      if (pathname === "/authorize") {
        const back = new URL(searchParams.get("redirect_uri"));
        back.search = new URLSearchParams({ state: searchParams.get("state"), code: "a-code" });
        response.writeHead(302, { location: back.href }).end();
        return;
      }
      const body = pathname === "/token"
        ? { access_token: "a-token", token_type: "Bearer", expires_in: 60 }
        : { sub: "subject-1", email: address, email_verified: true, name: "Olive" };
      response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(body));
    });
    provider.listen(0, "127.0.0.1");
    await once(provider, "listening");
    const at = `http://127.0.0.1:${provider.address().port}`;
    try {
      const people = await collection("oauthusers", {
        type: "auth",
        oauth2: { enabled: true, providers: [{
          name: "oidc", clientId: "app", clientSecret: "secret", authURL: `${at}/authorize`, tokenURL: `${at}/token`, userInfoURL: `${at}/userinfo`,
        }] },
      });
      const pb = connect();
      const auth = await pb.collection(people.name).authWithOAuth2({
        provider: "oidc",
        urlCallback: async (window) => { // what the browser does, which knows nothing of this client
          const page = await fetch(window);
          assert.ok(page.ok, `${page.status} ${page.url}`);
        },
      });
      assert.equal(auth.record.email, address);
      assert.equal(auth.meta.isNew, true);
      assert.equal(pb.authStore.isValid, true);
      assert.deepEqual(seen, ["/authorize", "/token", "/userinfo"]);
      assert.equal(pb.realtime.isConnected, false);
    } finally {
      provider.close();
    }
  });

  it("reconnects by itself when the server restarts", async () => {
    const pb = connect();
    const [inbox, lost, connected] = [new Inbox(), new Inbox(), new Inbox()];
    await pb.realtime.subscribe("PB_CONNECT", connected.push);
    await pb.collection(messages.name).subscribe("*", inbox.push);
    pb.realtime.onDisconnect = lost.push;
    const first = pb.realtime.clientId;

    await restart();
    const topics = await lost.next();
    assert.ok(topics.some((topic) => topic.startsWith(`${messages.name}/*`)), JSON.stringify(topics));

    while ((await connected.next(15_000)).clientId === first);
    assert.notEqual(pb.realtime.clientId, first);
    const made = await send({ body: "after the restart" });
    assert.equal((await inbox.next()).record.id, made.id);
  });
});

