package demo

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"image"
	"image/color"
	"image/draw"
	"image/jpeg"
	"image/png"
	"math"

	"github.com/pocketbase/pocketbase/tools/filesystem"
)

const (
	avatarSize  = 128 // pixels a side
	photoWidth  = 640
	photoHeight = 400
	sunRadius   = 42
)

// avatar is a symmetric pattern of blocks that is the same for the same name.
func avatar(name string) (*filesystem.File, error) {
	const cells, margin = 5, 14
	const cell = (avatarSize - 2*margin) / cells
	h := hash(name)
	picture := image.NewRGBA(image.Rect(0, 0, avatarSize, avatarSize))
	draw.Draw(picture, picture.Bounds(), image.NewUniform(tone(h, 0.93)), image.Point{}, draw.Src)
	ink := image.NewUniform(tone(h, 0.45))
	for x := range (cells + 1) / 2 {
		for y := range cells {
			if h>>(x*cells+y)&1 == 0 {
				continue
			}
			for _, column := range []int{x, cells - 1 - x} {
				block := image.Rect(0, 0, cell, cell).Add(image.Pt(margin+column*cell, margin+y*cell))
				draw.Draw(picture, block, ink, image.Point{}, draw.Src)
			}
		}
	}
	var out bytes.Buffer
	if err := png.Encode(&out, picture); err != nil {
		return nil, fmt.Errorf("encode avatar: %w", err)
	}
	return filesystem.NewFileFromBytes(out.Bytes(), name+".png")
}

// photo is a landscape: a sky that fades, a sun and two hills, in colors and positions that follow from the name.
func photo(name string) (*filesystem.File, error) {
	h := hash(name)
	sky, ground, sun := tone(h, 0.6), tone(h>>8, 0.35), tone(h>>16, 0.85)
	sunX, sunY := float64(80+h%480), float64(60+h>>9%120)
	hill, phase := mix(ground, sky, 0.35), float64(h%628)/100
	var waves [photoWidth]float64
	for x := range waves {
		waves[x] = math.Sin(float64(x)/90+phase) * 28
	}
	picture := image.NewRGBA(image.Rect(0, 0, photoWidth, photoHeight))
	for y := range photoHeight {
		height := float64(y)
		air := mix(sky, color.RGBA{255, 250, 240, 255}, height/photoHeight)
		for x, wave := range waves {
			c := air
			dx, dy := float64(x)-sunX, height-sunY
			switch {
			case height > 310-wave:
				c = ground
			case height > 260+wave:
				c = hill
			case dx*dx+dy*dy < sunRadius*sunRadius:
				c = sun
			}
			picture.SetRGBA(x, y, c)
		}
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, picture, &jpeg.Options{Quality: 82}); err != nil {
		return nil, fmt.Errorf("encode photo: %w", err)
	}
	return filesystem.NewFileFromBytes(out.Bytes(), name+".jpg")
}

func hash(name string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // a hash never fails
	return h.Sum32()
}

// tone is a color of the hue h degrees, from black at light 0 to white at 1.
func tone(h uint32, light float64) color.RGBA {
	channel := func(shift float64) uint8 {
		wave := math.Cos((float64(h%360) + shift) * math.Pi / 180)
		strength := math.Min(light, 1-light) * 0.9
		return uint8(math.Round(255 * (light + wave*strength)))
	}
	return color.RGBA{channel(0), channel(-120), channel(120), 255}
}

func mix(a, b color.RGBA, share float64) color.RGBA {
	blend := func(x, y uint8) uint8 { return uint8(float64(x)*(1-share) + float64(y)*share) }
	return color.RGBA{blend(a.R, b.R), blend(a.G, b.G), blend(a.B, b.B), 255}
}
