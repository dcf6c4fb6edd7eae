import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { URI } from "otpauth";
import { client, failure, password, user } from "../support.mjs";

const totp = "/api/v1/auth/totp";
const step = 30_000;

// enrolled is a user who scanned the code with an authenticator app. The first code was used to confirm, so that the
// next sign-in takes the one of the next half minute.
async function enrolled() {
  const pb = await user();
  const begun = await pb.send(totp, { method: "POST" });
  const app = URI.parse(begun.data.uri);
  const confirmed = await pb.send(`${totp}/confirm`, { method: "POST", body: { code: app.generate() } });
  const next = () => app.generate({ timestamp: Date.now() + step });
  return { pb, app, next, secret: begun.data.secret, recoveryCodes: confirmed.data.recoveryCodes, email: pb.authStore.record.email };
}

describe("second factor", () => {
  it("understands the authenticator app, and it us", async () => {
    const { pb, app, secret, recoveryCodes, email } = await enrolled();
    assert.equal(app.secret.base32, secret);
    assert.equal(app.label, email);
    assert.equal(app.digits, 6);
    assert.equal(app.period, 30);
    assert.equal(recoveryCodes.length, 10);
    assert.equal((await pb.send(totp, {})).data.enabled, true);
  });

  it("signs in by the two steps that the SDK documents", async () => {
    const { next, email } = await enrolled();
    const pb = client();
    const first = await failure(401, () => pb.collection("users").authWithPassword(email, password));
    assert.deepEqual(Object.keys(first.response), ["mfaId"]);
    assert.equal(pb.authStore.isValid, false);

    const { mfaId } = first.response;
    const wrong = await failure(400, () => pb.send(`${totp}/verify`, { method: "POST", body: { mfaId, code: "000000" } }));
    assert.equal(wrong.response.code, "totp.code_invalid");
    const auth = await pb.send(`${totp}/verify`, { method: "POST", body: { mfaId, code: next() } });
    pb.authStore.save(auth.token, auth.record);
    assert.equal(pb.authStore.isValid, true);
    assert.equal((await pb.collection("users").authRefresh()).record.email, email);
  });

  it("takes a recovery code once", async () => {
    const { recoveryCodes, email } = await enrolled();
    const pb = client();
    const verify = async (recoveryCode) => {
      const first = await failure(401, () => pb.collection("users").authWithPassword(email, password));
      return pb.send(`${totp}/verify`, { method: "POST", body: { mfaId: first.response.mfaId, recoveryCode } });
    };
    assert.equal((await verify(recoveryCodes[0].toLowerCase())).record.email, email);
    await failure(400, () => verify(recoveryCodes[0]));
  });

  it("is switched off with a code", async () => {
    const { pb, next, email } = await enrolled();
    await pb.send(totp, { method: "DELETE", body: { code: next() } });
    const auth = await client().collection("users").authWithPassword(email, password);
    assert.equal(auth.record.email, email);
  });
});
