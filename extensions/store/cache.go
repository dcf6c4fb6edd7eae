package store

import (
	"container/list"
	"database/sql/driver"
)

// statementsKept bounds the prepared statements of one connection. A statement takes 3-10 kB.
const statementsKept = 128

// prepared is a statement in the cache. It is busy as long as its rows are open, and is not handed out meanwhile.
type prepared struct {
	driver.Stmt
	text string
	busy bool
}

// statements are the prepared statements of one connection, the one used last in front.
type statements struct {
	byText map[string]*list.Element
	order  list.List // of *prepared
}

// get returns the statement for the text if it is there; the caller must look whether it is busy.
func (c *statements) get(text string) *prepared {
	e := c.byText[text]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	p, _ := e.Value.(*prepared)
	return p
}

// add keeps a statement and drops the one that has not been used for longest. If all are in use it keeps nothing.
func (c *statements) add(text string, stmt driver.Stmt) *prepared {
	if c.order.Len() >= statementsKept && !c.evict() {
		return nil
	}
	if c.byText == nil {
		c.byText = make(map[string]*list.Element, statementsKept)
	}
	p := &prepared{Stmt: stmt, text: text}
	c.byText[text] = c.order.PushFront(p)
	return p
}

func (c *statements) evict() bool {
	for e := c.order.Back(); e != nil; e = e.Prev() {
		if p, ok := e.Value.(*prepared); ok && !p.busy {
			c.drop(p)
			return true
		}
	}
	return false
}

// drop closes a statement and forgets it.
func (c *statements) drop(p *prepared) {
	if e := c.byText[p.text]; e != nil && e.Value == p {
		c.order.Remove(e)
		delete(c.byText, p.text)
	}
	_ = p.Close()
}

// clear closes all statements; the connection ends.
func (c *statements) clear() {
	for _, e := range c.byText {
		if p, ok := e.Value.(*prepared); ok {
			_ = p.Close()
		}
	}
	c.byText = nil
	c.order.Init()
}
