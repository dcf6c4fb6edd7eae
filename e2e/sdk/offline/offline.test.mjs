// The JavaScript of docs/clients/offline.md: polling, and the protocol itself.
import assert from "node:assert/strict";
import { before, describe, it } from "node:test";
import { account, newId, Phone, seed, world } from "./world.mjs";
import { poll, Replica } from "./offline.gen.mjs";

const table = "own_notes";

// Disk keeps what a save was given, as a database would.
class Disk {
  async load() {
    return this.text && JSON.parse(this.text);
  }
  async save(state) {
    if (this.full) {
      throw new Error("the app has died");
    }
    this.text = JSON.stringify(state);
  }
}

describe("plain clients", () => {
  let pb, names, ann, bob, team;

  before(async () => {
    names = await world("own");
    pb = names.pb;
    [ann, bob] = [await account(), await account()];
    team = await pb.collection(names.teams).create({ name: "both" });
    await pb.collection(names.members).create({ user: ann.id, team: team.id });
    await pb.collection(names.members).create({ user: bob.id, team: team.id });
  });
  const replica = async (user, disk = new Disk(), phone) => {
    const device = Object.assign(await Phone.of(user), phone);
    const made = new Replica(device.call, disk, [table]);
    await made.open();
    return Object.assign(made, { phone: device });
  };

  it("poll", async () => {
    const [phone, disk] = [await Phone.of(ann), new Disk()];
    const note = await pb.collection(table).create({ title: "polled", owner: ann.id });
    assert.equal(await poll(phone.call, disk, [table]), 30);
    assert.equal((await disk.load()).rows[`${table}/${note.id}`].title, "polled");
    await pb.collection(table).update(note.id, { title: "again" });
    await poll(phone.call, disk, [table]);
    assert.equal((await disk.load()).rows[`${table}/${note.id}`].title, "again");
    await pb.collection(table).delete(note.id);
    await poll(phone.call, disk, [table]);
    assert.deepEqual((await disk.load()).rows, {});
    phone.calls = [];
    await poll(phone.call, disk, [table]);
    assert.deepEqual(phone.calls, ["GET 204"]);
    await disk.save({ since: "unknown", rows: { [`${table}/x`]: {} } });
    await poll(phone.call, disk, [table]);
    assert.deepEqual((await disk.load()).rows, {});
  });

  it("keep both edits, count, and take refusals back", async () => {
    const [a, b] = [await replica(ann), await replica(bob)];
    const id = newId();
    await a.change("create", table, id, { title: "one", owner: ann.id, team: team.id });
    assert.equal(a.view(table)[id].title, "one");
    assert.deepEqual(await a.sync(), []);
    await b.sync();
    await a.change("update", table, id, { title: "by ann" });
    await a.sync();
    await b.change("update", table, id, { body: "by bob" });
    await b.change("delete", table, id); // only the owner may
    const [refused] = await b.sync();
    assert.equal(refused.status, "denied");
    await a.sync();
    for (const device of [a, b]) {
      const { title, body } = device.view(table)[id];
      assert.deepEqual([title, body], ["by ann", "by bob"]);
      assert.equal(device.state.queue.length, 0);
    }
    await a.change("delete", table, id);
    await a.sync();
    await b.sync();
    assert.equal(b.view(table)[id], undefined);
  });

  it("survive lost answers and their own death", async () => {
    const disk = new Disk();
    let a = await replica(ann, disk);
    const id = newId();
    await a.change("create", table, id, { title: "one", owner: ann.id });
    a.phone.lose = 1;
    await assert.rejects(a.sync());
    disk.full = true;
    await assert.rejects(a.sync());
    disk.full = false;
    const phone = a.phone;
    a = new Replica(phone.call, disk, [table]); // the app is started again, in the same session
    await a.open();
    assert.equal(a.state.queue.length, 1);
    await a.change("update", table, id, { title: "two" });
    assert.deepEqual(await a.sync(), []);
    assert.equal((await pb.collection(table).getOne(id)).title, "two");
    assert.deepEqual([a.view(table)[id].title, a.state.queue], ["two", []]);
  });

  it("start over page by page, and drop what is not there any more", async () => {
    const disk = new Disk();
    const eve = await account();
    await seed(pb, table, eve.id, 1200);
    const first = await replica(eve, disk);
    await first.sync();
    assert.equal(Object.keys(first.view(table)).length, 1200);
    await pb.sql.run(`DELETE FROM ${table} WHERE owner = '${eve.id}' AND likes <= 100`);
    const second = await replica(eve, disk); // a new sign-in: another device for the server
    await second.sync();
    assert.equal(Object.keys(second.view(table)).length, 1100);
  });
});
