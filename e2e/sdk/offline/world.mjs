// What the suites of offline clients share: notes that their owners and the members of their teams see, and a network
// that fails on demand.
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { client, dates, email, number, password, relation, superuser, text, url } from "../support.mjs";

export const newId = () => randomBytes(15).reduce((id, b) => id + "abcdefghijklmnopqrstuvwxyz0123456789"[b % 36], "");

// world makes the collections, once for a file, and returns the names that they have.
export async function world(prefix) {
  const pb = await superuser();
  const users = await pb.collections.getOne("users");
  const rules = { listRule: "", viewRule: "", createRule: null, updateRule: null, deleteRule: null };
  const teams = await pb.collections.create({ name: `${prefix}_teams`, type: "base", fields: [text("name")], ...rules });
  const members = await pb.collections.create({
    name: `${prefix}_members`, type: "base", ...rules, listRule: "user = @request.auth.id",
    fields: [relation("user", users, { cascadeDelete: true }), relation("team", teams, { cascadeDelete: true })],
  });
  const own = "owner = @request.auth.id";
  const seen = `${own} || team.${members.name}_via_team.user ?= @request.auth.id`;
  const notes = await pb.collections.create({
    name: `${prefix}_notes`, type: "base", listRule: seen, viewRule: seen, createRule: own, updateRule: seen, deleteRule: own,
    fields: [
      text("title", { max: 200 }), text("body"), number("likes"), { name: "due", type: "date" },
      { name: "tags", type: "select", values: ["a", "b", "c"], maxSelect: 3 },
      relation("owner", users), relation("team", teams), ...dates,
    ],
    indexes: [`CREATE INDEX idx_${prefix}_owner ON ${prefix}_notes (owner)`, `CREATE INDEX idx_${prefix}_team ON ${prefix}_notes (team)`],
  });
  return { pb, teams: teams.name, members: members.name, notes: notes.name };
}

// account signs up and returns the address.
export async function account() {
  const address = email("offline");
  const record = await client().collection("users").create({ email: address, password, passwordConfirm: password });
  return { address, id: record.id };
}

// Phone is one device: a session of its own, and a network.
export class Phone {
  lose = 0; // how many answers get lost on the way; the server has done its part
  offline = false;
  calls = [];

  static async of(user) {
    const pb = client();
    const { meta } = await pb.collection("users").authWithPassword(user.address, password);
    return Object.assign(new Phone(), { token: meta.session.accessToken, user });
  }

  call = async (path, init = {}) => {
    if (this.offline) {
      throw new TypeError("fetch failed");
    }
    const answer = await fetch(url + path, { ...init, headers: { ...init.headers, Authorization: `Bearer ${this.token}` } });
    this.calls.push(`${init.method ?? "GET"} ${answer.status}`);
    if (this.lose > 0) {
      this.lose--;
      throw new TypeError("fetch failed");
    }
    return answer;
  };
}

// until waits for a condition.
export async function until(what, holds, limit = 20_000) {
  for (const end = Date.now() + limit; ; await sleep(20)) {
    if (await holds()) {
      return;
    }
    if (Date.now() > end) {
      throw new Error(`${what}: not within ${limit} ms`);
    }
  }
}

// seed makes many notes in one statement.
export async function seed(pb, table, owner, count) {
  await pb.sql.run(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${count})
    INSERT INTO ${table} (id, title, body, likes, due, tags, owner, team, created, updated)
    SELECT 's' || substr('00000000000000' || i, -14), 'note ' || i, 'a body of some length for note ' || i, i, '', '[]', '${owner}', '',
      '2026-01-01 00:00:00.000Z', '2026-01-01 00:00:00.000Z' FROM n`);
}
