import assert from "node:assert/strict";
import { before, describe, it } from "node:test";
import { client, collection, column, failure, relation, text } from "../support.mjs";

describe("relations", () => {
  let authors, tags, books, reviews;
  let ada, go, sql, book;

  before(async () => {
    authors = await collection("authors", { fields: [text("name")] });
    tags = await collection("tags", { fields: [text("name")] });
    books = await collection("books", {
      fields: [text("title"), relation("author", authors, { required: true }), relation("tags", tags, { maxSelect: 5 })],
    });
    reviews = await collection("reviews", { fields: [text("stars"), relation("book", books, { cascadeDelete: true })] });
    const pb = client();
    ada = await pb.collection(authors.name).create({ name: "Ada" });
    go = await pb.collection(tags.name).create({ name: "go" });
    sql = await pb.collection(tags.name).create({ name: "sql" });
    book = await pb.collection(books.name).create({ title: "Engines", author: ada.id, tags: [go.id, sql.id] });
    await pb.collection(reviews.name).create({ stars: "5", book: book.id });
    await pb.collection(reviews.name).create({ stars: "3", book: book.id });
  });

  it("expand one and many", async () => {
    const read = await client().collection(books.name).getOne(book.id, { expand: "author,tags" });
    assert.equal(read.expand.author.name, "Ada");
    assert.deepEqual(column(read.expand.tags, "name"), ["go", "sql"]);
  });

  it("expand through several steps", async () => {
    const page = await client().collection(reviews.name).getList(1, 10, { expand: "book.author,book.tags", sort: "stars" });
    assert.deepEqual(column(page.items, "stars"), ["3", "5"]);
    for (const review of page.items) {
      assert.equal(review.expand.book.expand.author.name, "Ada");
      assert.equal(review.expand.book.expand.tags.length, 2);
    }
  });

  it("expand backwards", async () => {
    const read = await client().collection(authors.name).getOne(ada.id, {
      expand: `${books.name}_via_author.${reviews.name}_via_book`,
    });
    const [first] = read.expand[`${books.name}_via_author`];
    assert.equal(first.title, "Engines");
    assert.deepEqual(column(first.expand[`${reviews.name}_via_book`], "stars").sort(), ["3", "5"]);
  });

  it("select fields of what they expand", async () => {
    const read = await client().collection(books.name).getOne(book.id, { expand: "author", fields: "title,expand.author.name" });
    assert.deepEqual(read, { title: "Engines", expand: { author: { name: "Ada" } } });
  });

  it("filter and sort across", async () => {
    const found = await client().collection(reviews.name).getFullList({ filter: "book.author.name = 'Ada' && book.tags.name ?= 'sql'", sort: "-stars" });
    assert.deepEqual(column(found, "stars"), ["5", "3"]);
    const back = await client().collection(authors.name).getFullList({ filter: `${books.name}_via_author.title ?= 'Engines'` });
    assert.deepEqual(column(back, "id"), [ada.id]);
  });

  it("ignore an expand that does not exist", async () => {
    const read = await client().collection(books.name).getOne(book.id, { expand: "nothing" });
    assert.equal(read.expand, undefined);
  });

  it("add to and take from the many", async () => {
    const pb = client();
    const made = await pb.collection(books.name).create({ title: "Lists", author: ada.id });
    assert.deepEqual((await pb.collection(books.name).update(made.id, { "tags+": [go.id, sql.id] })).tags, [go.id, sql.id]);
    assert.deepEqual((await pb.collection(books.name).update(made.id, { "tags-": go.id })).tags, [sql.id]);
  });

  it("refuse what does not exist and protect what is required", async () => {
    const pb = client();
    const err = await failure(400, () => pb.collection(books.name).create({ title: "Ghost", author: "nobody000000000" }));
    assert.ok(err.response.data.author.code);
    await failure(400, () => pb.collection(authors.name).delete(ada.id));
    assert.equal((await pb.collection(authors.name).getOne(ada.id)).name, "Ada");
  });

  it("cascade deletes", async () => {
    const pb = client();
    const made = await pb.collection(books.name).create({ title: "Short", author: ada.id });
    const review = await pb.collection(reviews.name).create({ stars: "1", book: made.id });
    await pb.collection(books.name).delete(made.id);
    await failure(404, () => pb.collection(reviews.name).getOne(review.id));
  });

  it("feed a view collection", async () => {
    const view = await collection("ratings", {
      type: "view",
      viewQuery: `SELECT b.id, b.title, COUNT(r.id) AS total FROM ${books.name} b LEFT JOIN ${reviews.name} r ON r.book = b.id GROUP BY b.id`,
    });
    const read = await client().collection(view.name).getOne(book.id);
    assert.deepEqual([read.title, read.total], ["Engines", 2]);
    await failure(400, () => client().collection(view.name).create({ title: "x" }));
  });
});
