"""Concrete nouns that captions of photos use, English only: what `noise.level: noun` means by a shared noun.

A word list, not a tagger: a listed word counts wherever it occurs ("a park bench" has `park` and `bench`), in the
singular and in the plural, and other words are not nouns. Words that captions use mostly as verbs or adjectives
("watch", "can", "orange") are left out.
"""

import re
from functools import cache

PEOPLE = """adult athlete baby band batter bicyclist biker boxer boy bride catcher cheerleader chef child
    climber clown couple cowboy crowd cyclist dancer family farmer fisherman girl goalie groom guitarist guy
    gymnast hiker jockey kid lady man motorcyclist musician officer pedestrian performer person pitcher player
    policeman pupil racer referee rider runner shepherd singer skateboarder skater skier snowboarder soldier
    student surfer swimmer teen teenager toddler umpire vendor waiter waitress woman worker wrestler"""
BODY = """arm beard ear eye face finger foot hair hand head leg mouth nose paw shoulder tail tongue tooth"""
ANIMALS = """animal bear bee bird bull bunny butterfly calf camel cat cattle chicken cow crab deer dog dolphin
    donkey duck eagle elephant elk fish flamingo fox frog giraffe goat goose gorilla greyhound herd horse
    insect kangaroo kitten lamb lion lizard monkey mouse ostrich owl ox panda parrot peacock penguin pig pigeon
    pony poodle puppy rabbit retriever rhino rooster seagull seal shark sheep sheepdog snake spider squirrel
    swan tiger turkey turtle whale wolf zebra"""
CLOTHES = """apron backpack bag bandana belt bikini bonnet boot bracelet cap cape coat collar costume dress
    earring glasses glove goggles gown handbag hat headband headphones hoodie jacket jeans jersey kimono leash
    mask mitten necklace outfit overalls pajamas pants purse raincoat robe sandal scarf shirt shoe shorts skirt
    sneaker sock suit suitcase sunglasses sweater sweatshirt swimsuit tattoo tie trunks tutu umbrella uniform
    veil vest wetsuit"""
PLACES = """airport alley arena backyard barn bathroom beach bedroom boardwalk bridge building cafe canyon
    castle cave church city classroom cliff court creek desert dirt dock farm fence field forest fountain
    garage garden gym harbor highway hill house intersection island jungle kitchen lake lawn ledge library mall
    market meadow mountain museum ocean office park path pavement pier platform playground pond pool porch
    racetrack restaurant river road roof room runway sand school sea shop shore sidewalk sky skyline slope snow
    stadium stage station store stream street studio temple tent tower town track trail tree tunnel valley
    village wall water waterfall woods yard zoo"""
VEHICLES = """aeroplane airplane ambulance bicycle bike boat bus cab canoe car carriage cart ferry helicopter
    jeep jet kayak limousine locomotive moped motorbike motorcycle plane raft rickshaw sailboat scooter ship
    sled stroller subway taxi tractor trailer train tram tricycle trolley truck unicycle van vehicle wagon
    wheelchair"""
SPORTS = """ball baseball basketball bat football frisbee goal golf guitar helmet hockey hoop hurdle kite
    lacrosse net paddle puck racket ramp rugby skateboard skates ski sled slide snowball snowboard soccer
    softball surfboard swing tennis trampoline trapeze volleyball"""
FOOD = """apple bagel banana bean beef beer bread breakfast broccoli bun burger burrito butter cake candy
    carrot cauliflower cereal cheese cherry chocolate coffee cookie corn cracker cupcake dessert dinner donut
    doughnut egg food fries fruit grape ham hamburger hotdog icing juice ketchup lemon lettuce lunch meal meat
    melon milk muffin mushroom mustard noodle onion pancake pasta pastry pear pepper pickle pie pineapple pizza
    potato rice salad sandwich sauce sausage shrimp soda soup spaghetti spinach steak strawberry sushi tea
    toast tofu tomato vegetable wine"""
HOUSEHOLD = """balloon basket bath bathtub bed bench blanket blender book bookshelf bottle bowl box broom
    bucket cabinet camera candle carpet ceiling cellphone chair chandelier clock closet computer couch counter
    cradle crib cup cupboard curtain desk dish dishwasher door drawer dresser fan faucet fireplace floor fork
    freezer fridge furniture glass hairbrush hammock hose jar kettle keyboard knife ladder lamp laptop laundry
    magazine mattress microwave mirror monitor mug napkin newspaper oven painting pan paper pen pencil phone
    photo piano picture pillow plant plate pot printer quilt refrigerator rug scissors seat shelf shower sink
    sofa spatula spoon stool stove table teapot teddy telephone television toaster toilet toothbrush towel toy
    tray tub vase wallet window"""
OUTDOORS = """anchor antenna banner barrel billboard branch brick bubble bush cactus cage cannon chain
    cigarette cloud cone confetti curb dandelion drum fire firework flag flower flute fog graffiti grass grave
    gravel gun hay hole hydrant instrument leaf lighthouse log mailbox microphone moss mud parachute petal pile
    pole poster puddle rail railing rainbow rock rope rose saddle saxophone sculpture sign smoke sprinkler
    stairs statue stick stone sun sunflower sunset sword tire trumpet trunk tube violin waterfront wave wheel
    windmill wire wood"""
SHAPES = """circle disc heart ring square star triangle"""

IRREGULAR = {
    **{"child": "children", "person": "people", "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice"},
    **{"ox": "oxen", "man": "men", "woman": "women", "policeman": "policemen", "fisherman": "fishermen"},
    **{"calf": "calves", "knife": "knives", "leaf": "leaves", "scarf": "scarves", "shelf": "shelves", "wolf": "wolves"},
    "bookshelf": "bookshelves",
}


def plurals(noun: str) -> set[str]:
    """Spellings of the plural: the regular ones (`buses`, `puppies`, `potatoes` and `photos`), or the irregular one."""
    if noun in IRREGULAR:
        return {IRREGULAR[noun]}
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return {f"{noun}es"}
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return {f"{noun[:-1]}ies"}
    return {f"{noun}s", f"{noun}es"} if noun.endswith("o") else {f"{noun}s"}


@cache
def noun_forms() -> dict[str, str]:
    """Every form of the listed nouns -> its singular, in alphabetical order of the singulars."""
    listed = " ".join((PEOPLE, BODY, ANIMALS, CLOTHES, PLACES, VEHICLES, SPORTS, FOOD, HOUSEHOLD, OUTDOORS, SHAPES))
    return {form: noun for noun in sorted(set(listed.split())) for form in (noun, *plurals(noun))}


def nouns_of(caption: str) -> list[str]:
    """The listed nouns in a caption, singular, each once, in order of appearance.

    Example:
        >>> nouns_of("Two dogs and a man's dog run past People on benches.")
        ['dog', 'man', 'person', 'bench']
    """
    forms = noun_forms()
    words = re.findall("[a-z]+", caption.lower())
    return list(dict.fromkeys(forms[word] for word in words if word in forms))
