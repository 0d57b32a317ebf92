"""Every word that the demo checkpoint is trained to read or say, for tasks and tokenizer."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (215, 30, 35),
    "green": (20, 150, 60),
    "blue": (25, 75, 215),
    "yellow": (235, 200, 0),
    "orange": (245, 125, 0),
    "purple": (135, 40, 170),
    "black": (20, 20, 20),
}
COLUMNS = ("left", "center", "right")
ROWS = ("top", "middle", "bottom")
DIRECTIONS = {
    "right": (1, 0),
    "left": (-1, 0),
    "down": (0, 1),
    "up": (0, -1),
    "down right": (1, 1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "up left": (-1, -1),
}
KEYS = "0123456789*#"
WORDS = [
    "sun",
    "cat",
    "dog",
    "tree",
    "fish",
    "bird",
    "moon",
    "rain",
    "snow",
    "wind",
    "fire",
    "gold",
    "iron",
    "salt",
    "milk",
    "bread",
    "stone",
    "river",
    "house",
    "chair",
    "table",
    "apple",
    "lemon",
    "grape",
    "cloud",
    "storm",
    "horse",
    "sheep",
    "tiger",
    "mouse",
    "train",
    "plane",
    "boat",
    "road",
]
CITIES = [
    "Paris",
    "London",
    "Rome",
    "Berlin",
    "Madrid",
    "Oslo",
    "Cairo",
    "Tokyo",
    "Lima",
    "Delhi",
    "Boston",
    "Dublin",
]

# Wordings by question; {} slots are filled by the task.
ASK = {
    "shape": (
        "What shape is this?",
        "Which shape do you see?",
        "Name the shape.",
        "What shape is it?",
    ),
    "colour": (
        "What colour is this?",
        "What color is it?",
        "Which colour is the shape?",
        "Name the color.",
    ),
    "shape and colour": (
        "What is in the picture?",
        "What do you see?",
        "Describe the picture.",
        "What is this?",
    ),
    "count": (
        "How many shapes are there?",
        "How many objects do you see?",
        "Count the shapes.",
        "How many things are in the picture?",
    ),
    "count kind": ("How many {}s are there?", "Count the {}s.", "How many {}s do you see?"),
    "place": ("Where is the {}?", "In which part of the picture is the {}?", "Find the {}."),
    "colour of": (
        "What colour is the {}?",
        "What color is the {}?",
        "Which colour does the {} have?",
    ),
    "shape of": ("What shape is {}?", "Which shape is {}?", "What is the {} shape?"),
    "relation": (
        "Where is the {} relative to the {}?",
        "On which side of the {1} is the {0}?",
        "Is the {} left, right, above or below the {}?",
    ),
    "left of": ("Is the {} left of the {}?", "Is the {} to the left of the {}?"),
    "right of": ("Is the {} right of the {}?", "Is the {} to the right of the {}?"),
    "above": ("Is the {} above the {}?", "Is the {} higher than the {}?"),
    "below": ("Is the {} below the {}?", "Is the {} lower than the {}?"),
    "number": (
        "What number is this?",
        "Which number do you see?",
        "Read the number.",
        "What number is in the picture?",
    ),
    "first digit": ("What is the first digit?", "Which digit comes first?"),
    "last digit": ("What is the last digit?", "Which digit comes last?"),
    "digits": ("How many digits are there?", "How many digits does it have?"),
    "keys": (
        "Which keys were pressed?",
        "What keys do you hear?",
        "Write down the keys.",
        "Which keys are these?",
    ),
    "melody": (
        "Does the melody go up or down?",
        "Is the melody rising or falling, up or down?",
        "Which way does the melody go?",
        "Do the notes go up or down?",
    ),
    "tones": ("How many tones do you hear?", "How many tones are there?"),
    "motion": (
        "Which way does it move?",
        "In which direction does the object move?",
        "Where is the shape going?",
        "Which direction is it moving?",
    ),
    "mover": ("What is moving?", "What moves in the clip?"),
    "copy": ("Repeat: {}", "Say this again: {}", "Copy these words: {}", "Repeat after me: {}"),
    "reverse": (
        "Reverse the order: {}",
        "Say these words backwards: {}",
        "Turn the list around: {}",
    ),
    "upper": ("Write in upper case: {}", "Upper case, please: {}", "Write this in capitals: {}"),
    "add": ("What is {} + {}?", "Add {} and {}.", "How much is {} plus {}?", "{} + {} = ?"),
    "weather": ("What is the weather in {}?", "How is the weather in {} today?", "Weather in {}?"),
    "time": ("What time is it in {}?", "Tell me the time in {}.", "What is the time in {}?"),
}
CHAT = (
    (("Hello", "Hi", "Hello!", "Hi there"), "Hello! Show me a picture or play me a sound."),
    (("Who are you?", "What are you?"), "I am a small demo model."),
    (
        ("What can you do?", "Help"),
        "I name shapes, count, read numbers, hear keys and melodies, and follow a moving shape.",
    ),
    (("Thank you", "Thanks!", "Thank you!"), "You are welcome."),
)
TOOLS = {
    "get_weather": {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The city."}},
                "required": ["city"],
            },
        },
    },
    "get_time": {
        "type": "function",
        "function": {
            "name": "get_time",
            "description": "Get the time in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The city."}},
                "required": ["city"],
            },
        },
    },
}
SKIES = ("sunny", "cloudy", "rainy", "windy")
