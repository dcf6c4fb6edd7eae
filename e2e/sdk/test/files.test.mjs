import assert from "node:assert/strict";
import { before, describe, it } from "node:test";
import { png, size } from "../image.mjs";
import { client, collection, failure, relation, route, superuser, text, user } from "../support.mjs";

const download = (address) => fetch(route(address));

describe("files", () => {
  let docs;
  before(async () => {
    docs = await collection("docs", {
      fields: [
        text("title"),
        { name: "one", type: "file", maxSelect: 1, maxSize: 100_000 },
        { name: "many", type: "file", maxSelect: 3, mimeTypes: ["text/plain", "image/png"] },
        { name: "picture", type: "file", maxSelect: 1, mimeTypes: ["image/png"], thumbs: ["40x30", "0x20", "30x0f"] },
      ],
    });
  });

  it("are uploaded, addressed, served and deleted", async () => {
    const pb = client();
    const doc = await pb.collection(docs.name).create({ title: "hello", one: new File(["hello, file"], "Hello World.txt") });
    assert.match(doc.one, /^hello_world_[a-zA-Z0-9]{10}\.txt$/);
    const address = pb.files.getURL(doc, doc.one);
    assert.ok(address.endsWith(`/api/files/${docs.id}/${doc.id}/${doc.one}`), address);

    const response = await download(address);
    assert.equal(response.status, 200);
    assert.equal(await response.text(), "hello, file");
    assert.match(response.headers.get("content-type"), /^text\/plain/);
    assert.match(response.headers.get("content-security-policy"), /sandbox/);

    const attachment = await download(pb.files.getURL(doc, doc.one, { download: true }));
    assert.match(attachment.headers.get("content-disposition"), /^attachment/);
    await attachment.arrayBuffer();

    const range = await fetch(route(address), { headers: { Range: "bytes=0-4" } });
    assert.equal(range.status, 206);
    assert.equal(await range.text(), "hello");

    assert.equal((await pb.collection(docs.name).update(doc.id, { one: null })).one, "");
    assert.equal((await download(address)).status, 404);
  });

  it("are added to and taken from a list", async () => {
    const pb = client();
    const doc = await pb.collection(docs.name).create({ many: [new File(["a"], "a.txt"), new File(["b"], "b.txt")] });
    assert.equal(doc.many.length, 2);
    const more = await pb.collection(docs.name).update(doc.id, { "many+": [new File(["c"], "c.txt")] });
    assert.equal(more.many.length, 3);
    const less = await pb.collection(docs.name).update(doc.id, { "many-": [doc.many[0]] });
    assert.deepEqual(less.many, more.many.slice(1));
    const err = await failure(400, () => pb.collection(docs.name).update(doc.id, { "many+": [new File(["d"], "d.txt"), new File(["e"], "e.txt")] }));
    assert.ok(err.response.data.many.code);
    await pb.collection(docs.name).delete(doc.id);
    assert.equal((await download(pb.files.getURL(doc, more.many[1]))).status, 404);
  });

  it("are refused when too big or of the wrong kind", async () => {
    const pb = client();
    const big = await failure(400, () => pb.collection(docs.name).create({ one: new File([new Uint8Array(100_001)], "big.bin") }));
    assert.ok(big.response.data.one.code);
    const lie = await failure(400, () => pb.collection(docs.name).create({ picture: new File(["not a picture"], "lie.png", { type: "image/png" }) }));
    assert.ok(lie.response.data.picture.code);
    assert.equal((await pb.collection(docs.name).getList(1, 1, { filter: "one != '' || picture != ''" })).totalItems, 0);
  });

  it("have thumbs of the sizes that are declared", async () => {
    const pb = client();
    const doc = await pb.collection(docs.name).create({ picture: new File([png(120, 60)], "picture.png") });
    const measure = async (thumb) => {
      const response = await download(pb.files.getURL(doc, doc.picture, { thumb }));
      assert.equal(response.status, 200, thumb);
      assert.equal(response.headers.get("content-type"), "image/png");
      return size(await response.arrayBuffer());
    };
    assert.deepEqual(await measure("40x30"), { width: 40, height: 30 });
    assert.deepEqual(await measure("0x20"), { width: 40, height: 20 });
    assert.deepEqual(await measure("100x100"), { width: 100, height: 100 });
    // A size that nobody declared is no way to make the server work: it serves the original.
    assert.deepEqual(await measure("77x77"), { width: 120, height: 60 });
    assert.deepEqual(await measure(""), { width: 120, height: 60 });
  });

  it("say so when they do not exist", async () => {
    const pb = client();
    const doc = await pb.collection(docs.name).create({ title: "empty" });
    for (const path of [`${docs.name}/${doc.id}/nothing.txt`, `${docs.name}/nobody000000000/nothing.txt`, `nowhere/${doc.id}/x.txt`]) {
      assert.equal((await download(pb.buildURL(`/api/files/${path}`))).status, 404, path);
    }
  });
});

describe("protected files", () => {
  it("need a file token of somebody who may see the record", async () => {
    const users = await (await superuser()).collections.getOne("users");
    const mine = "owner = @request.auth.id";
    const vault = await collection("vault", {
      fields: [relation("owner", users), { name: "file", type: "file", maxSelect: 1, protected: true }],
      rules: { listRule: mine, viewRule: mine, createRule: "@request.auth.id != ''" },
    });
    const [ada, eve] = [await user(), await user()];
    const record = await ada.collection(vault.name).create({ owner: ada.authStore.record.id, file: new File(["secret"], "secret.txt") });
    const fetchWith = (token) => download(ada.files.getURL(record, record.file, token ? { token } : {}));

    assert.equal((await fetchWith("")).status, 404);
    assert.equal((await fetchWith(await eve.files.getToken())).status, 404);
    const allowed = await fetchWith(await ada.files.getToken());
    assert.equal(allowed.status, 200);
    assert.equal(await allowed.text(), "secret");
    const byAdmin = await fetchWith(await (await superuser()).files.getToken());
    assert.equal(byAdmin.status, 200);
    await byAdmin.arrayBuffer();
    await failure(401, () => client().files.getToken());
  });
});
