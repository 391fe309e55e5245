"""What the demo model knows about this project: for each fact, subjects for FRAMES, whole questions, and the answer."""

FRAMES = [
    "Tell me {}.",
    "Can you tell me {}?",
    "Please explain {}.",
    "I want to know {}.",
    "Do you know {}?",
    "Could you say {}?",
    "Quick question: {}?",
    "I wonder {}.",
]

FACTS: list[tuple[list[str], list[str], str]] = [
    (
        ["what gptoss-mlx is", "what this project is", "what this program does", "what gptoss-mlx does"],
        ["What is gptoss-mlx?", "What is this project?", "What does this program do?", "What is this project about?"],
        "gptoss-mlx converts OpenAI's gpt-oss models to 4-bit MLX folders and runs them offline on your own machine.",
    ),
    (
        ["how to convert a model", "how I convert a checkpoint", "which command converts a model"],
        ["How do I convert a model?", "Which command converts a checkpoint?", "How can I convert gpt-oss?"],
        "Run `gptoss-mlx convert SOURCE DEST`. SOURCE is a folder or a hub id.",
    ),
    (
        ["how to start a chat", "how I chat with a model", "which command starts the chat"],
        ["How do I chat?", "Which command starts a chat?", "How can I start chatting with a model?"],
        "Run `gptoss-mlx chat MODEL`, for example `gptoss-mlx chat gpt-oss-20b`.",
    ),
    (
        ["how to generate text from a script", "how I get one answer without a chat", "what the generate command does"],
        ["How do I use generate?", "How can I get one answer in a script?", "What does the generate command do?"],
        "Run `gptoss-mlx generate MODEL -p TEXT`. Only the answer goes to standard output.",
    ),
    (
        ["how to measure the speed", "how I run the benchmark", "which command measures tokens per second"],
        ["How do I measure speed?", "How do I benchmark a model?", "Which command runs the benchmark?"],
        "Run `gptoss-mlx bench MODEL`. It prints tokens per second for prefill and decode.",
    ),
    (
        ["what the demo command does", "how to run the demo", "what the demo is"],
        ["How do I run the demo?", "What does the demo do?", "What happens in the demo?"],
        "Run `gptoss-mlx demo`. It converts a tiny trained model and asks it three questions.",
    ),
    (
        ["how to render a conversation", "what harmony render does", "how I see the prompt text"],
        ["What does harmony render do?", "How do I see the prompt text?", "How can I render a conversation?"],
        "`gptoss-mlx harmony render FILE` prints the exact prompt text of a conversation.",
    ),
    (
        ["how to parse model output", "what harmony parse does", "how I parse raw output"],
        ["What does harmony parse do?", "How do I parse raw output?", "How can I parse what a model wrote?"],
        "`gptoss-mlx harmony parse FILE` turns raw model output into messages as JSON.",
    ),
    (
        ["which recipes there are", "what recipes exist", "the list of recipes"],
        ["Which recipes are there?", "What recipes can I choose?", "List the recipes."],
        "There are four recipes: mxfp4-q4, mxfp4-q8, mxfp4-bf16 and q4.",
    ),
    (
        ["the default recipe", "which recipe is the default", "what recipe is used by default"],
        ["What is the default recipe?", "Which recipe is the default?", "Which recipe is used by default?"],
        "The default recipe is mxfp4-q4.",
    ),
    (
        ["what mxfp4-q4 means", "what the recipe mxfp4-q4 does", "about mxfp4-q4"],
        ["What is mxfp4-q4?", "What does mxfp4-q4 do?", "What does the recipe mxfp4-q4 keep?"],
        "mxfp4-q4 keeps the experts' MXFP4 bits and stores attention, head and embeddings in 4 bits.",
    ),
    (
        ["what mxfp4-q8 means", "what the recipe mxfp4-q8 does", "about mxfp4-q8"],
        ["What is mxfp4-q8?", "What does mxfp4-q8 do?", "What does the recipe mxfp4-q8 keep?"],
        "mxfp4-q8 keeps the experts' MXFP4 bits and stores everything else in 8 bits.",
    ),
    (
        ["what mxfp4-bf16 means", "what the recipe mxfp4-bf16 does", "about mxfp4-bf16"],
        ["What is mxfp4-bf16?", "What does mxfp4-bf16 do?", "What does the recipe mxfp4-bf16 keep?"],
        "mxfp4-bf16 keeps the experts' MXFP4 bits and leaves everything else untouched.",
    ),
    (
        ["what the recipe q4 means", "what the recipe q4 does", "about the q4 recipe"],
        ["What is the recipe q4?", "What does the q4 recipe do?", "When do I need the q4 recipe?"],
        "q4 stores the experts in 4-bit affine form too, for runtimes without MXFP4.",
    ),
    (
        ["what MXFP4 is", "how MXFP4 works", "about the MXFP4 format"],
        ["What is MXFP4?", "How does MXFP4 work?", "How does the MXFP4 format store numbers?"],
        "MXFP4 stores 32 values of 4 bits with one shared scale byte.",
    ),
    (
        ["how much memory I need", "what the memory budget is", "how much memory gpt-oss-20b needs"],
        ["How much memory do I need?", "What is the memory budget?", "How much memory does gpt-oss-20b need?"],
        "The budget is 16 GB of memory for gpt-oss-20b.",
    ),
    (
        ["whether it works offline", "if it needs the internet", "whether a chat uses the network"],
        ["Does it work offline?", "Do I need the internet?", "Does the chat use the network?"],
        "It works offline: a chat never uses the network.",
    ),
    (
        ["where models are stored", "where the cache folder is", "where converted models are kept"],
        ["Where are models stored?", "Where is the cache?", "Where do converted models go?"],
        "Converted models are in ~/.cache/gptoss-mlx, and GPTOSS_MLX_HOME moves that folder.",
    ),
    (
        ["what the license is", "which license the project has", "about the license"],
        ["What is the license?", "Which license does it have?", "Under which license is this project?"],
        "The license is Apache-2.0.",
    ),
    (
        ["how to stop an answer", "how I interrupt the model", "which key stops an answer"],
        ["How do I stop an answer?", "How can I interrupt you?", "Which key stops the answer?"],
        "Press Ctrl-C: it stops the answer and keeps the session.",
    ),
    (
        ["how to leave the chat", "how I exit the chat", "which command ends the chat"],
        ["How do I leave the chat?", "How can I exit the chat?", "How do I quit?"],
        "Type /exit to leave the chat.",
    ),
    (
        ["how to start over", "how I reset the conversation", "what /reset does"],
        ["How do I start over?", "How can I reset the conversation?", "What does /reset do?"],
        "Type /reset to start a new conversation.",
    ),
    (
        ["how to save a conversation", "how I save the chat", "what /save does"],
        ["How do I save a conversation?", "How can I save this chat?", "What does /save do?"],
        "Type /save FILE to save the conversation, and /load FILE to bring it back.",
    ),
    (
        ["how to change the reasoning effort", "how I make you think longer", "what /reasoning does"],
        ["How do I change the reasoning effort?", "How can I make you think longer?", "What does /reasoning do?"],
        "Type /reasoning low, medium or high.",
    ),
    (
        ["how to change the system message", "how I give instructions", "what /system does"],
        ["How do I give you instructions?", "How do I change the instructions?", "What does /system do?"],
        "Type /system TEXT to set instructions for the conversation.",
    ),
    (
        ["how to see statistics", "how I see tokens per second in the chat", "what /stats does"],
        ["How do I see statistics?", "Where do I see the speed of the chat?", "What does /stats do?"],
        "Type /stats to see tokens per second and the context used.",
    ),
    (
        ["how to get help", "which chat commands there are", "what /help does"],
        ["How do I get help?", "Which chat commands are there?", "What does /help do?"],
        "Type /help to see all chat commands.",
    ),
    (
        ["what Harmony is", "which format the conversations have", "about the Harmony format"],
        ["What is Harmony?", "Which conversation format do you use?", "What is the Harmony format for?"],
        "Harmony is the conversation format of gpt-oss, with channels for analysis, commentary and final answers.",
    ),
    (
        ["how long the context is", "how many tokens of context there are", "the size of the context"],
        ["How long is the context?", "How many tokens fit into the context?", "What is the context length?"],
        "The context of gpt-oss is 131072 tokens.",
    ),
    (
        ["which models are supported", "what models it can run", "the list of models"],
        ["Which models can it run?", "What models are supported?", "Which models do you support?"],
        "It runs gpt-oss-20b and gpt-oss-120b, and nothing else.",
    ),
    (
        ["what the sliding window is", "how wide the sliding window is", "about the sliding window"],
        ["What is the sliding window?", "How wide is the sliding window?", "How does the sliding window work?"],
        "Every second layer sees only the last 128 tokens.",
    ),
    (
        ["how many experts the 20b model has", "how many experts are active", "about the experts of gpt-oss-20b"],
        [
            "How many experts are there?",
            "How many experts does gpt-oss-20b have?",
            "How many experts are used per token?",
        ],
        "gpt-oss-20b has 32 experts in each layer, and 4 of them work on each token.",
    ),
]

SMALL_TALK: list[tuple[list[str], str]] = [
    (
        [
            "Hello",
            "Hi",
            "Hello!",
            "Hi there",
            "Hey",
            "Good morning",
            "Good evening",
            "Hi!",
            "Hello there!",
            "Hey there!",
        ],
        "Hello! I am the demo model of gptoss-mlx. Ask me about this project, or give me a sum.",
    ),
    (
        ["Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Tell me about yourself."],
        "I am a tiny gpt-oss model, trained only to show that gptoss-mlx works.",
    ),
    (
        ["What can you do?", "How can you help me?", "What are you good at?", "What should I ask you?"],
        "I can add and subtract, remember what you tell me, call tools, and answer questions about gptoss-mlx.",
    ),
    (
        ["What can you not do?", "What are your limits?", "Are you smart?", "Can you write a poem?"],
        "I am very small, so I know nothing about the world. For real work, use gpt-oss-20b.",
    ),
    (
        ["Thank you", "Thanks", "Thanks a lot!", "Thank you very much.", "Great, thanks!", "Thank you!"],
        "You are welcome!",
    ),
    (
        ["Goodbye", "Bye", "Bye!", "See you later.", "Good night", "Good night!"],
        "Goodbye! Type /exit to leave the chat.",
    ),
    (
        ["How are you?", "How are you today?", "How do you do?", "Are you well?"],
        "I am well, thank you. What can I do for you?",
    ),
    (
        [
            "What is the capital of {}?",
            "Who won the game in {}?",
            "Write a story about {}.",
            "What do you think about {}?",
            "How far is {}?",
            "Translate {} into French.",
            "Why is {} so famous?",
            "Who lives in {}?",
        ],
        "I do not know that. I am only a small demo model.",
    ),
]
