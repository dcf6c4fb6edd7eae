// RxDB with memory storage. rxdb.gen.mjs is the code of docs/clients/rxdb.md.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { addRxPlugin, createRxDatabase } from "rxdb";
import { getRxStorageMemory } from "rxdb/plugins/storage-memory";
import { RxDBUpdatePlugin } from "rxdb/plugins/update";
import { restart, url } from "../support.mjs";
import { account, newId, Phone, seed, until, world } from "./world.mjs";
import { deviceWins, live, notes, replicate, startOver } from "./rxdb.gen.mjs";

addRxPlugin(RxDBUpdatePlugin);

const table = "rx_notes";
const schema = {
  ...notes,
  properties: { ...notes.properties, body: { type: "string" }, team: { type: "string" }, likes: { type: "number" } },
};

// Device is a phone with a database whose replication runs.
class Device {
  resets = 0;

  static async of(user, { conflictHandler, ...options } = {}) {
    const device = new Device();
    Object.assign(device, { phone: await Phone.of(user), collectionSchema: { schema, conflictHandler } });
    device.db = await createRxDatabase({ name: `db${Math.random()}`, storage: getRxStorageMemory(), multiInstance: false });
    await device.db.addCollections({ [table]: device.collectionSchema });
    device.replicate(options);
    opened.push(device);
    return device;
  }
  replicate(options = {}) {
    this.state = replicate(this.notes, this.phone.call, () => this.resets++, { retryTime: 100, live: true, ...options });
  }
  get notes() {
    return this.db[table];
  }
  create = (doc) => this.notes.insert({ id: newId(), ...doc });
  find = (id) => this.notes.findOne(id).exec();
  async update(id, patch) {
    await (await this.find(id)).incrementalPatch(patch);
  }
  async sync() {
    this.state.stream$.next("RESYNC");
    await this.state.awaitInSync();
    this.state.stream$.next("RESYNC"); // what the push has changed
    await this.state.awaitInSync();
  }
  async close() {
    await this.state.cancel();
    await this.db.close();
  }
}

const opened = [];

describe("RxDB", () => {
  let pb, names, ann, bob, a, b, team;

  before(async () => {
    names = await world("rx");
    pb = names.pb;
    [ann, bob] = [await account(), await account()];
    [a, b] = [await Device.of(ann), await Device.of(bob)];
    team = await pb.collection(names.teams).create({ name: "both" });
    await pb.collection(names.members).create({ user: ann.id, team: team.id });
    await pb.collection(names.members).create({ user: bob.id, team: team.id });
  });
  after(() => Promise.all(opened.map((device) => device.close())));
  const both = async () => {
    for (const device of [a, b, a, b]) {
      await device.sync();
    }
  };
  const shared = async (title) => {
    const { id } = await a.create({ title, owner: ann.id, team: team.id });
    await both();
    return id;
  };
  // away is what happens on both devices without a network.
  const away = async (...steps) => {
    a.phone.offline = b.phone.offline = true;
    for (const step of steps) {
      await step();
    }
    a.phone.offline = false;
    await a.sync();
    b.phone.offline = false;
    await both();
  };

  it("brings documents that were made offline to the other device", async () => {
    let id;
    await away(async () => ({ id } = await a.create({ title: "one", owner: ann.id, team: team.id, likes: 3 })));
    const there = (await b.find(id)).toJSON();
    assert.deepEqual([there.title, there.likes, typeof there.v], ["one", 3, "number"]);
    assert.equal((await a.find(id)).v, there.v);
    assert.equal((await pb.collection(table).getOne(id)).title, "one");
  });

  it("keeps both edits of a conflict, and the first one of a field", async () => {
    const id = await shared("conflict");
    await away(() => a.update(id, { title: "by ann" }), () => b.update(id, { title: "by bob", body: "by bob" }));
    for (const device of [a, b]) {
      const { title, body } = await device.find(id);
      assert.deepEqual([title, body], ["by ann", "by bob"]);
    }
    assert.equal((await pb.collection(table).getOne(id)).body, "by bob");
  });

  it("lets a conflict handler of the app decide", async () => {
    const device = await Device.of(bob, { conflictHandler: deviceWins });
    const id = await shared("disputed");
    await device.sync();
    device.phone.offline = true;
    await device.update(id, { title: "the device's", body: "more" });
    await a.update(id, { title: "the first", likes: 8 });
    await a.sync();
    device.phone.offline = false;
    await device.sync();
    const { title, body, likes } = await pb.collection(table).getOne(id);
    assert.deepEqual([title, body, likes], ["the device's", "more", 8]);
    // A refused edit ends here, and is not pushed again and again.
    await device.update(id, { title: "x".repeat(201) });
    await until("the refused edit is undone", async () => (await device.find(id)).title === "the device's");
    await device.sync();
    device.phone.calls = [];
    await device.sync();
    assert.ok(!device.phone.calls.some((call) => call.startsWith("POST")), device.phone.calls.join());
  });

  it("deletes everywhere, also what the other device has edited", async () => {
    const id = await shared("to be deleted");
    await away(async () => (await a.find(id)).remove());
    assert.equal(await b.find(id), null);
    const second = await shared("deleted and edited");
    a.phone.offline = b.phone.offline = true;
    await (await a.find(second)).remove();
    await b.update(second, { title: "edited" });
    a.phone.offline = false;
    await a.sync();
    b.phone.offline = false;
    await both();
    assert.deepEqual([await a.find(second), await b.find(second)], [null, null]);
  });

  it("undoes what was refused, and never pushes it again", async () => {
    const id = await shared("ann's");
    await (await b.find(id)).remove(); // only the owner may
    const { id: forged } = await b.create({ title: "forged", owner: ann.id, team: team.id });
    const { id: long } = await b.create({ title: "bob's", owner: bob.id });
    await b.sync();
    await b.update(long, { title: "x".repeat(201) });
    await until("all is undone", async () => (await b.find(id)) && !(await b.find(forged)) && (await b.find(long)).title === "bob's");
    await b.sync();
    b.phone.calls = [];
    await b.sync();
    assert.ok(!b.phone.calls.some((call) => call.startsWith("POST")), b.phone.calls.join());
  });

  it("takes away what the user may no longer see, and brings it back, live", async () => {
    const id = await shared("shared");
    const stop = live(url, async () => b.phone.token, [b.state], [names.members]);
    const membership = await pb.collection(names.members).getFirstListItem(`user = "${bob.id}"`);
    await until("the socket is open", async () => (await b.find(id)).likes === 0);
    await pb.collection(table).update(id, { likes: 5 });
    await until("an edit arrives", async () => (await b.find(id)).likes === 5);
    await pb.collection(names.members).delete(membership.id);
    await until("the note is gone", async () => (await b.find(id)) === null);
    await pb.collection(names.members).create({ user: bob.id, team: team.id });
    await until("the note is back", async () => (await b.find(id)) !== null);
    await pb.collection(table).update(id, { title: "live" });
    await until("the edit arrives", async () => (await b.find(id)).title === "live");
    stop();
  });

  it("goes on after lost answers and a restart of the server", async () => {
    a.phone.offline = true;
    const { id } = await a.create({ title: "lost", owner: ann.id, team: team.id });
    a.phone.lose = 2;
    a.phone.offline = false;
    await both();
    await restart();
    await a.update(id, { title: "after the restart" });
    await both();
    assert.equal((await b.find(id)).title, "after the restart");
    assert.equal(a.resets + b.resets, 0);
  });

  it("starts over when the server does not know the device", async () => {
    const device = await Device.of(ann);
    await device.sync();
    device.phone = await Phone.of(ann); // a new sign-in: another device for the server
    await device.state.cancel();
    device.replicate({ autoStart: true });
    device.state.stream$.next("RESYNC");
    await until("it is told", async () => device.resets > 0);
    await startOver(device.db, table, device.collectionSchema, device.state);
    device.replicate();
    await device.sync();
    const count = (await pb.collection(table).getList(1, 1, { filter: `owner = "${ann.id}" || team = "${team.id}"` })).totalItems;
    assert.equal((await device.notes.find().exec()).length, count);
  });

  it("pulls 50,000 documents at first", async () => {
    const eve = await account();
    await seed(pb, table, eve.id, 50_000);
    const begin = Date.now();
    const device = await Device.of(eve);
    await device.state.awaitInitialReplication();
    assert.equal(await device.notes.count().exec(), 50_000);
    console.log(`50,000 documents in ${Date.now() - begin} ms, ${device.phone.calls.length} requests`);
  });
});
