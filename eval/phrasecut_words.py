"""The words by which PhraseCut's own evaluator (its utils/subset.py) sorts phrases into subsets."""


def _words(text: str) -> frozenset[str]:
  return frozenset(word.strip() for word in text.split(","))


# A phrase describes "stuff" when its category contains one of these.
STUFF = _words("""
  water, waterdrops, sea, river, fog, ground, field, platform, rail, pavement, road, gravel, mud, dirt, snow, sand,
  solid, hill, mountain, stone, rock, wood, sky, cloud, vegetation, straw, moss, branch, leaf, leaves, bush, tree,
  grass, forest, railing, net, cage, fence, building, roof, tent, bridge, skyscraper, house, food, vegetable, salad,
  textile, banner, blanket, curtain, cloth, napkin, towel, mat, rug, stairs, light, counter, mirror, cupboard,
  cabinet, shelf, table, desk, door, window, floor, carpet, ceiling, wall, brick, metal, plastic, paper, cardboard,
  street, shadow, sidewalk, plant, wave, reflection, ocean, beach
""")
COCO = _words("""
  person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
  parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
  handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
  surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
  broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
  mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
  teddy bear, hair drier, toothbrush
""")
# Kinds of attributes: subset a_KIND.
ATTRIBUTES = {
  "color": _words("""
    white, black, blue, green, brown, red, yellow, gray, grey, silver, orange, dark, pink, tan, purple, beige,
    bright, gold, colorful, blonde, light brown, light blue, colored, multicolored, maroon, dark blue, dark brown,
    golden, dark green, black and white, blond, evergreen, light colored, dark grey, multi-colored, light skinned,
    dark colored, multi colored, blue and white, light green, bright blue, red and white, dark gray, cream
    colored, light grey, teal, navy blue, turquoise, murky, navy
  """),
  "shape": _words("""
    large, small, tall, long, big, short, round, grassy, little, thick, square, thin, sliced, curved, rectangular,
    flat, high, wide, stacked, arched, chain link, circular, bent, cut, huge, metallic, cream, pointy, extended,
    curly, skinny, pointed, narrow, piled, tiny, vertical, oval, curled, row, straight, smaller, triangular,
    horizontal, crossed, sharp, upside down, pointing, chopped, slice, rectangle, shallow, wispy, rounded, piece,
    scattered, giant, slanted, tied, sparse, circle, patchy, tilted, fat, upright, larger
  """),
  "material": _words("""
    wooden, metal, wood, brick, cloudy, glass, concrete, plastic, stone, tiled, cement, dirt, sandy, leafy,
    fluffy, rocky, snowy, leather, steel, paper, chocolate, tile, ceramic, grass, furry, iron, water, stainless
    steel, hardwood, marble, khaki, cardboard, porcelain, snow covered, asphalt, chrome, rock, wicker, rubber,
    denim, muddy, foamy, granite, bricked, gravel, snow-covered, clay, sand, red brick
  """),
  "texture": _words("""
    clear, wet, striped, dirty, paved, shiny, painted, dry, plaid, clean, blurry, hazy, floral, rusty, splashing,
    cloudless, worn, smooth, checkered, spotted, patterned, reflecting, wrinkled, reflective, shining, choppy,
    rough, reflected, rusted, lined, fuzzy, blurred, faded, printed, foggy, dusty, glazed, rippled, transparent,
    frosted
  """),
  "state": _words("""
    standing, open, sitting, walking, parked, hanging, playing, closed, empty, on, looking, watching, flying,
    eating, skiing, covered, surfing, skateboarding, full, jumping, holding, close, leaning, running, riding,
    folded, waiting, moving, laying, grazing, off, talking, parking, calm, posing, crashing, melted, skating,
    seated, raised, playing tennis, sleeping, opened, broken, resting, dried, snowboarding, crouching, driving,
    fried, swinging, cracked, drinking, burnt, kneeling, stopped, rolling, sitting down, trimmed, breaking,
    crouched, bending, dressed, standing up, wrapped, attached, floating, rolled up, lying, squatting, held,
    cutting, outstretched, illuminated, reading, turned, swimming, turning
  """),
  "adj": _words("""
    young, old, smiling, bare, light, part, dead, cooked, framed, pictured, overcast, leafless, beautiful,
    stuffed, growing, decorative, electrical, electric, bald, older, lit, fresh, lush, wire, happy, puffy, sunny,
    ripe, male, palm, shirtless, female, asian, hairy, ornate, bushy, deep, wavy, toasted, barefoot, potted, short
    sleeved, edge, wild, busy, decorated, double decker, long sleeved, partial, soft, flat screen, healthy,
    floppy, plain, filled, modern, long sleeve, overgrown, displayed, digital, cast, airborne, delicious, hard,
    carpeted, heavy, new, grilled, sleeveless, pale, pretty, different, american, nice, fake, designed, cute,
    manicured, written
  """),
  "noun": _words("""
    tennis, baseball, man's, baby, train, woman's, pine, tree, street, passenger, traffic, computer, adult, ski,
    man, wine, burgundy, stop, snow, bathroom, city, teddy, kitchen, patch, nike, woman, wall, fire, clock,
    window, straw, flower, ground, pizza, apple, power, coffee, tennis player, toy, ocean
  """),
  "loc": _words("""
    distant, background, back, behind, in background, side, up, rear, down, top, far, overhead, low, above,
    outdoors, in distance, in the background, inside, outdoor, bottom, in air
  """),
  "count": _words("""
    one, three, four, many, pair, several, double, grouped, group, together, bunch, alone, set, single
  """),
  "bad": _words("""
    here, present, wearing, in the picture, some, daytime, existing, ready, made, in picture
  """),
}
