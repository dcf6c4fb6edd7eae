// The clients of docs/clients, with the server restarting, answers that get lost, and clocks that are wrong. web.gen.mjs
// and native.gen.mjs are their code, as the documents have it.
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import { command, email, password, restart, url } from "../support.mjs";
import { secure, open } from "./native.gen.mjs";
import { memory, Offline, Session, SignedOut } from "./web.gen.mjs";

const realFetch = globalThis.fetch;
const realNow = Date.now;

for (const [name, connect] of Object.entries({
  "web": () => new Session(url, memory(), { "X-App-Platform": "web" }),
  "React Native": () => open(url, "3f1c7d0e-6f0b-4f0e-9a55-1b1b7f0c2a11", "1.0.0"),
})) {
  describe(`the ${name} client`, () => {
    let session, address, refreshes, lose;
    const sessions = async (s = session) => (await (await s.fetch("/api/v1/auth/sessions")).json()).data;

    beforeEach(async () => {
      [refreshes, lose] = [0, 0];
      // The network: lose is how many answers of refreshes get lost on the way. The server has done its part.
      globalThis.fetch = async (target, init) => {
        const answer = await realFetch(target, init);
        if (String(target).endsWith("/auth/refresh")) {
          refreshes++;
          if (lose > 0) {
            lose--;
            throw new TypeError("fetch failed");
          }
        }
        return answer;
      };
      session = connect();
      address = email("client");
      await realFetch(`${url}/api/v1/collections/users/records`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ email: address, password, passwordConfirm: password }),
      });
      assert.equal((await session.signIn("users", address, password)).email, address);
    });
    afterEach(() => {
      globalThis.fetch = realFetch;
      Date.now = realNow;
    });

    it("signs in and calls", async () => {
      assert.deepEqual((await sessions()).map((s) => s.current), [true]);
      assert.equal(refreshes, 0);
    });

    it("renews a token that the server refuses, once for all that wait", async () => {
      await command("auth", "keys", "rotate", "--now", "--drop");
      const answers = await Promise.all(Array.from({ length: 8 }, () => session.fetch("/api/v1/auth/sessions")));
      assert.deepEqual(answers.map((a) => a.status), Array(8).fill(200));
      assert.equal(refreshes, 1);
    });

    it("repeats a refresh whose answer was lost, also days later", async () => {
      await command("auth", "keys", "rotate", "--now", "--drop");
      lose = 2;
      assert.equal((await sessions()).length, 1);
      assert.equal(refreshes, 3);

      await command("auth", "keys", "rotate", "--now", "--drop");
      lose = Infinity;
      await assert.rejects(session.fetch("/api/v1/auth/sessions"), Offline);
      lose = 0;
      assert.equal((await sessions()).length, 1, "offline is not signed out");
    });

    it("does not look at the device's clock", async () => {
      for (const shift of [365, -365]) {
        Date.now = () => realNow() + shift * 24 * 3600 * 1000;
        assert.equal((await sessions()).length, 1);
      }
      assert.equal(refreshes, 0);
    });

    it("stays signed in while the server restarts", async () => {
      let done = false;
      const restarted = restart().then(() => (done = true));
      while (!done) {
        const answer = await session.fetch("/api/v1/auth/sessions").catch((err) => err);
        assert.ok(answer instanceof Offline || [200, 503].includes(answer.status), String(answer));
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      await restarted;
      assert.equal((await sessions()).length, 1);
    });

    it("is signed out by another device, and by nothing else", async () => {
      const other = new Session(url, memory());
      await other.signIn("users", address, password);
      const mine = (await sessions(other)).find((s) => !s.current);
      assert.equal((await other.fetch(`/api/v1/auth/sessions/${mine.id}`, { method: "DELETE" })).status, 204);
      await assert.rejects(session.fetch("/api/v1/auth/sessions"), SignedOut);
      await assert.rejects(session.fetch("/api/v1/auth/sessions"), SignedOut);
      assert.equal(await session.store.load() ?? null, null, "the token is gone");
      assert.equal((await sessions(other)).length, 1);
    });

    it("is signed out when its token was used by somebody else", async () => {
      const stolen = await session.store.load();
      const steal = (refreshToken) => realFetch(`${url}/api/v1/auth/refresh`, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ refreshToken }),
      });
      const first = (await (await steal(stolen)).json()).data;
      assert.equal((await steal(first.refreshToken)).status, 200); // two generations on, so no grace
      await command("auth", "keys", "rotate", "--now", "--drop");
      await assert.rejects(session.fetch("/api/v1/auth/sessions"), SignedOut);
    });

    it("passes other answers on", async () => {
      assert.equal((await session.fetch("/api/v1/nothing")).status, 404);
      await assert.rejects(connect().signIn("users", address, "wrong"), /Failed to authenticate/);
    });
  });
}

it("the store of React Native is the module's", async () => {
  await secure.save("a");
  assert.equal(await secure.load(), "a");
  await secure.clear();
  assert.equal(await secure.load(), null);
});
